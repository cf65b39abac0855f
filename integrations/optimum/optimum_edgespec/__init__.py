"""The command `optimum-cli export edgespec`."""
