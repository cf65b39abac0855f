"""edgespec: a draft on the device, a target in the cloud, the target's own text.

This package is the vocabulary that both sides share; it imports none of its siblings. The command
line (`cli.main`) is the one module that reaches outward, inside its commands.
"""

__version__ = "0.1.0"
