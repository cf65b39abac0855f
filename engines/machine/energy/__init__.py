"""Energy and heat of this machine, from the sensors that it has.

`sensors.find` finds the sensors, an `EnergyMeter` reads them while something runs, and an `Energy`
holds the result. Readers take the root of the file tree, so that they also run on recorded trees.
What cannot be read is reported as missing; nothing is estimated.
"""
