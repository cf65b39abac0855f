"""Memory that loading a bundle's target takes, compared with its weights.

The kernel reports the resident memory of this process and its peak (`VmRSS` and `VmHWM` of
/proc/self/status, after `clear_refs` has reset the peak; proc(5)). The memory that the process held
before loading is subtracted.

ONNX Runtime maps the weights' files, copies each matrix into the layout of its kernels, and then
releases the mapped pages, segment after segment. The peak is therefore all weights once, and a
second copy of the matrix that is being converted. Matrices of int4 and int8 end up 1.4 and 1.24
times as large (measured; probably because scales are copied and sums of blocks are added). The rows
of an embedding stay mapped: they become resident when they are used, and the kernel may release
them.

The CPU has no fp16 arithmetic there: fp16 weights become fp32 and count as fp32 here.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import NamedTuple

import msgspec
from rich.console import Console

from bench.lab.report import print_json
from edgespec.errors import EdgespecError
from edgespec.manifest import Bundle
from engines.onnxruntime_backend.engine import OrtSettings, load_target

_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")
_RESET_PEAK = "5"
_BYTES_PER_KIB = 1024
HELD_TWICE_RATIO = 2.0
RUNTIME_BYTES = 64 << 20
"""Memory that ONNX Runtime may take for itself, apart from the weights."""


class LoadFigures(msgspec.Struct, frozen=True):
    """Memory beyond what the process held before loading."""

    origin: str
    precision: str
    segments: int
    weights_mb: int
    """Size of the weights' files."""
    held_mb: int
    """Size of the weights in the precision that the CPU computes in."""
    seconds: float
    peak_mb: int
    steady_mb: int
    steady_mapped_mb: int
    """The part of `steady_mb` that is mapped from files."""
    peak_times: float
    """Peak, relative to `held_mb`."""
    steady_times: float
    """Memory after loading, relative to `held_mb`."""
    held_twice: bool
    """True if all weights were in memory twice at the peak."""


class _Resident(NamedTuple):
    """Resident memory of this process, in bytes."""

    peak: int
    now: int
    mapped: int


def run(bundle: Bundle, threads: int, *, as_json: bool) -> bool:
    """Prints two lines, and with `as_json` one JSON object after them. Returns True if no weight
    was held twice.

    Raises one of edgespec's errors; an `EdgespecError` if the system is not Linux.
    """
    figures = measure(bundle, threads)
    console = Console(highlight=False)
    console.print(
        f"{figures.origin} {figures.precision} in {figures.segments} segments: weights of "
        f"{figures.weights_mb} MB{_as_held(figures)}, loaded in {figures.seconds} s, "
        "checksums included"
    )
    console.print(
        f"at most {figures.peak_mb} MB while loading, {figures.peak_times} times the "
        f"weights; {figures.steady_mb} MB afterwards, {figures.steady_times} times"
    )
    if as_json:
        print_json(figures)
    return not figures.held_twice


def measure(bundle: Bundle, threads: int) -> LoadFigures:
    before = _resident(reset=True)
    start = time.perf_counter()
    engine = load_target(bundle, OrtSettings(threads=threads, slots=1))
    seconds = time.perf_counter() - start
    after = _resident()
    del engine
    target = bundle.manifest.target
    weights = sum(
        file.size
        for name, file in bundle.manifest.files.items()
        if name.startswith("target/") and name.endswith(".data")
    )
    held = weights * (2 if target.precisions.layers == "fp16" else 1)
    peak, steady = after.peak - before.now, after.now - before.now
    return LoadFigures(
        origin=target.origin.name,
        precision=target.precisions.layers,
        segments=len(target.segments),
        weights_mb=round(weights / 1e6),
        held_mb=round(held / 1e6),
        seconds=round(seconds, 1),
        peak_mb=round(peak / 1e6),
        steady_mb=round(steady / 1e6),
        steady_mapped_mb=round((after.mapped - before.mapped) / 1e6),
        peak_times=round(peak / held, 2),
        steady_times=round(steady / held, 2),
        held_twice=peak - RUNTIME_BYTES >= HELD_TWICE_RATIO * held,
    )


def _as_held(figures: LoadFigures) -> str:
    if figures.held_mb == figures.weights_mb:
        return ""
    return f" (as fp32, which the CPU computes in: {figures.held_mb} MB)"


def _resident(*, reset: bool = False) -> _Resident:
    """Reads the resident memory; `reset` starts a new peak first."""
    try:
        if reset:
            _CLEAR.write_text(_RESET_PEAK)
        lines = _STATUS.read_text().splitlines()
    except OSError as error:
        raise EdgespecError(
            f"resident memory cannot be read from {error.filename} ({error.strerror}); "
            "this bench needs Linux"
        ) from error
    entries = dict(line.split(":", 1) for line in lines)
    names = ("VmHWM", "VmRSS", "RssFile")
    return _Resident(*(int(entries[name].split()[0]) * _BYTES_PER_KIB for name in names))
