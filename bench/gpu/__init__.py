"""`edgespec bench gpu`: steps against what a card allows."""
