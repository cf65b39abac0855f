"""`edgespec bench gpu`: step times compared with a lower bound for the card."""
