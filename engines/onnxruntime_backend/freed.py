"""Return of freed memory to the system after a graph was loaded.

ONNX Runtime copies weights into a layout of its own when it loads a graph, and frees the originals.
glibc keeps much of the freed memory: with int8 weights up to a third of their size. `malloc_trim`
(3) returns it to the system.
"""

from __future__ import annotations

import ctypes


def give_back_freed() -> None:
    """Returns freed memory to the system. Does nothing if the C library is not glibc."""
    try:
        trim = ctypes.CDLL(None).malloc_trim
    except (AttributeError, OSError):
        return
    trim(0)
