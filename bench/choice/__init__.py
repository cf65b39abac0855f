"""`edgespec choose`: which draft to make for a target, a device and a distance."""
