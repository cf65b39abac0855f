"""Memory that a session freed while it was loaded goes back to the system.

ONNX Runtime lays weights out anew when it loads a graph and frees what it laid them out from. glibc
keeps much of that for later: of int8 weights as much as a third again. `malloc_trim(3)` hands it
back.
"""

from __future__ import annotations

import ctypes


def give_back_freed() -> None:
    """Does nothing where the C library is not glibc."""
    try:
        trim = ctypes.CDLL(None).malloc_trim
    except (AttributeError, OSError):
        return
    trim(0)
