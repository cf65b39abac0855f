"""Virtual time: the real loops of device and cloud, with models, link and clock simulated."""
