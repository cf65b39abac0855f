"""`edgespec bench plan`: speeds and capacities on hardware that is described by step times."""
