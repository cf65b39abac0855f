"""Memory that loading a bundle's target takes: is any weight held twice?

The kernel says how much of this process is resident, and how much was at most (`VmRSS`, `VmHWM` of
/proc/self/status, after `clear_refs` has set the latter back; proc(5)). What the process held
before loading is subtracted.

ONNX Runtime maps the weights' files, copies each matrix into the layout that its kernels want, and
lets go of the mapped pages with it, segment after segment. So the peak is all weights once, and one
more copy of what is being laid out. Matrices of int4 and int8 are measured to end up 1.4 and 1.24
times as large: probably scales beside a copy of them, and sums of blocks. The rows of an embedding
stay mapped; they become resident when they are used, and the kernel may take them back.

The CPU has no fp16 arithmetic there: those weights become fp32, and count as such here.
"""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

from rich.console import Console

from edgespec.errors import EdgespecError
from edgespec.manifest import Bundle
from engines.onnxruntime_backend.engine import OrtSettings, load_target

_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")
_RESET_PEAK = "5"
TWICE = 2.0
OWN = 64 << 20
"""Bytes that ONNX Runtime may take for itself, which says nothing of the weights."""


def run(bundle: Bundle, threads: int, *, as_json: bool) -> bool:
    """Whether no weight was held twice. Prints two lines; with `as_json`, one JSON object after
    them. Raises edgespec's errors, an `EdgespecError` too where this is no Linux."""
    figures = measure(bundle, threads)
    console = Console(highlight=False)
    console.print(
        f"{figures['origin']} {figures['precision']} in {figures['segments']} segments: weights of "
        f"{figures['weights_mb']} MB{_as_held(figures)}, loaded in {figures['seconds']} s, "
        "checksums included"
    )
    console.print(
        f"at most {figures['peak_mb']} MB while loading, {figures['peak_times']} times the "
        f"weights; {figures['steady_mb']} MB afterwards, {figures['steady_times']} times"
    )
    if as_json:
        print(json.dumps(figures))
    return not figures["held_twice"]


def measure(bundle: Bundle, threads: int) -> dict[str, Any]:
    """What loading took, in MB beyond what the process held before, and times the weights."""
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
    peak, steady = after["VmHWM"] - before["VmRSS"], after["VmRSS"] - before["VmRSS"]
    return {
        "origin": target.origin.name,
        "precision": target.precisions.layers,
        "segments": len(target.segments),
        "weights_mb": round(weights / 1e6),
        "held_mb": round(held / 1e6),
        "seconds": round(seconds, 1),
        "peak_mb": round(peak / 1e6),
        "steady_mb": round(steady / 1e6),
        "steady_mapped_mb": round((after["RssFile"] - before["RssFile"]) / 1e6),
        "peak_times": round(peak / held, 2),
        "steady_times": round(steady / held, 2),
        "held_twice": peak - OWN >= TWICE * held,
    }


def _as_held(figures: dict[str, Any]) -> str:
    if figures["held_mb"] == figures["weights_mb"]:
        return ""
    return f" (as fp32, which the CPU computes in: {figures['held_mb']} MB)"


def _resident(*, reset: bool = False) -> dict[str, int]:
    """Bytes by the names of proc(5); `reset` begins a new peak first."""
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
    return {name: int(entries[name].split()[0]) * 1024 for name in names}
