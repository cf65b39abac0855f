"""An emulated aarch64 device on an x86-64 machine: its packages, and its answers compared."""
