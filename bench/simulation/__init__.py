"""The real loops in virtual time."""
