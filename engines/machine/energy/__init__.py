"""Energy and heat of this machine, from the sensors that it has.

`sensors.find` looks for them, a `Meter` reads them while something runs, and an `Energy` is what
came out. Readers take the root of the file tree, so that they run on recorded ones. What cannot be
read is said; nothing is estimated.
"""
