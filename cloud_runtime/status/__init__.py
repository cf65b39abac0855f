"""Status of a running cloud: counters, snapshots, metrics and the HTTP server."""
