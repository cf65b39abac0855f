"""`edgespec bench fleet`: how many devices one cloud serves."""
