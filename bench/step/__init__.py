"""`edgespec bench step`: one step of a draft and of a target on this machine's CPU."""
