"""TensorRT's timings of kernels, kept from one build to the next.

There is one file for each version and GPU, below `edgespec.config.cache_folder()`. It only saves
time: a missing, damaged, foreign or read-only file is ignored. TensorRT-RTX does not time kernels
while it builds.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import Any

from edgespec.config import cache_folder
from engines.tensorrt_backend.api import Installation


def timings_file(here: Installation) -> Path:
    return cache_folder() / f"{here.api}-{here.version}-{here.capability or 'cpu'}.timings"


def load_timings(config: Any, here: Installation) -> None:
    """Give `config` the stored timings, or an empty cache to fill."""
    kept = b""
    with contextlib.suppress(OSError):
        kept = timings_file(here).read_bytes()
    for content in dict.fromkeys((kept, b"")):
        timings = config.create_timing_cache(content)
        if timings is not None and config.set_timing_cache(timings, False):
            return


def save_timings(config: Any, here: Installation) -> None:
    timings = config.get_timing_cache()
    if timings is None:
        return
    place = timings_file(here)
    partial = place.with_name(f".{place.name}.{os.getpid()}")
    with contextlib.suppress(OSError):
        place.parent.mkdir(parents=True, exist_ok=True)
        partial.write_bytes(bytes(timings.serialize()))
        partial.replace(place)
