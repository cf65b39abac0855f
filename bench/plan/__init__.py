"""`edgespec bench plan`: other hardware, in virtual time."""
