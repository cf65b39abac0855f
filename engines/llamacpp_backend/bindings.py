"""llama.cpp's C functions, from the package `llama-cpp-python`, which compiles them."""

from __future__ import annotations

import ctypes
from functools import cache
from typing import Any

from edgespec.errors import EngineError


@cache
def open_bindings() -> Any:
    """The functions, without log output. Raises `EngineError` if the package is not installed."""
    try:
        import llama_cpp
    except ImportError as error:
        raise EngineError(
            "llama.cpp is not installed; install it with: pip install 'edgespec[llamacpp]'"
        ) from error
    quiet = llama_cpp.llama_log_callback(lambda *_: None)
    llama_cpp.llama_log_set(quiet, ctypes.c_void_p(0))
    llama_cpp.edgespec_log_callback = quiet  # C keeps no reference to it
    llama_cpp.llama_backend_init()
    return llama_cpp
