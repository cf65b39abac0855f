"""The device as aarch64, on a machine that is not: emulated, packaged and compared."""
