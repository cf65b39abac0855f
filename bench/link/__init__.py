"""`edgespec bench link`: every method at every distance."""
