"""Energy and heat of this machine, from its sensors.

`sensors.find` finds the sensors, an `EnergyMeter` reads them during a window, and an `Energy` holds
the result. Readers take the root of the file tree, so that they also run on recorded trees. A value
that cannot be read is reported as missing; nothing is estimated.
"""
