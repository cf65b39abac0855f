"""The HTTP server's own cost, its behaviour under load, and bad requests."""
