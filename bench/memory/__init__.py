"""`edgespec bench export` and `bench load`: memory and time of exporting and loading."""
