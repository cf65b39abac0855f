"""`edgespec bench crowd`: what misbehaving devices and large numbers of sessions cost."""
