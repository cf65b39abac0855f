"""Peak memory and time of an export, on a checkpoint far larger than the memory it may take.

A Llama of a known model's shapes is written from random numbers (`bench.lab.random_checkpoint`) and
exported by a process of its own, whose peak resident memory the kernel reports when it has ended
(`bench.lab.measured_process`).

Time is given beside that of a plain copy of the checkpoint in the same run, before the exports and
after them, of which the faster counts, since disks are not steady. Each begins with the checkpoint
out of the page cache and ends when what it wrote is on the disk, so none lives on another's
reading, or leaves its writing to be paid for later. Only one copy or bundle is there at a time.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from rich.console import Console
from rich.table import Table

from bench.lab.random_checkpoint import MODELS, layer_shapes, nbytes, shards, write_checkpoint
from edgespec.errors import EdgespecError
from edgespec.progress import progress

LAYERS, BESIDE_MB = 3, 300
"""What an export may take at most: so many layers' weights, and so much for the process itself."""
_BLOCK = 1 << 22
"""Bytes copied at a time."""
_LARGEST = {"fp32": 2.0, "fp16": 1.0, "int8": 0.75, "int4": 0.5}
"""A bundle's size, at most, in checkpoints of fp16; the embedding is fp32 beside integers."""


@dataclass(frozen=True)
class ExportBench:
    model: str = "1b"
    """One of `MODELS`."""
    segments: int = 8
    precisions: tuple[str, ...] = ("fp16", "int4")
    load: bool = False
    """Measure too what loading each bundle takes (`bench.memory.load`)."""


class Measured(NamedTuple):
    peak_mb: float
    seconds: float
    """Until the bundle is on the disk."""
    cpu_seconds: float
    bundle_mb: float
    load: dict[str, Any] | None = None
    """What `edgespec bench load` says of it."""


def run(settings: ExportBench, *, as_json: bool) -> bool:
    """Prints a table; with `as_json`, one JSON object as the last line. Says whether the peak
    stayed within the limit.

    Raises `EdgespecError` where the temporary folder has no room, or where an export fails.
    """
    config = MODELS[settings.model]
    total = sum(nbytes(shard) for shard in shards(config))
    with tempfile.TemporaryDirectory(prefix="edgespec-bench-") as temporary:
        place = Path(temporary)
        largest = max(1.0, *(_LARGEST[precision] for precision in settings.precisions))
        _check_disk(place, total * (1 + largest))
        checkpoint = place / "checkpoint"
        with progress("writing weights", total) as advance:
            write_checkpoint(checkpoint, config, advance)
        copies = [_copy(checkpoint, place / "copy")]
        measured = {
            precision: _export(checkpoint, place / f"bundle-{precision}", precision, settings)
            for precision in settings.precisions
        }
        copies.append(_copy(checkpoint, place / "copy"))
    figures = _figures(settings, total, copies, measured)
    _print(figures)
    if as_json:
        print(json.dumps(figures))
    return bool(figures["within_limit"])


def _figures(
    settings: ExportBench, total: int, copies: Sequence[float], measured: dict[str, Measured]
) -> dict[str, Any]:
    layer = nbytes(layer_shapes(MODELS[settings.model]))
    limit = LAYERS * layer / 1e6 + BESIDE_MB
    return {
        "model": settings.model,
        "segments": settings.segments,
        "peak_rss_mb": {p: round(m.peak_mb) for p, m in measured.items()},
        "seconds": {p: round(m.seconds, 1) for p, m in measured.items()},
        "cpu_seconds": {p: round(m.cpu_seconds, 1) for p, m in measured.items()},
        "bundle_mb": {p: round(m.bundle_mb) for p, m in measured.items()},
        "checkpoint_mb": round(total / 1e6),
        "layer_mb": round(layer / 1e6),
        "copy_seconds": [round(seconds, 1) for seconds in copies],
        "times_copy": {p: round(m.seconds / min(copies), 2) for p, m in measured.items()},
        "limit_mb": round(limit),
        "within_limit": all(m.peak_mb <= limit for m in measured.values()),
        "load": {p: m.load for p, m in measured.items() if m.load is not None},
    }


def _check_disk(place: Path, needed: float) -> None:
    free = shutil.disk_usage(place).free
    if free < needed * 1.05:
        raise EdgespecError(
            f"this needs {needed * 1.05 / 1e9:.1f} GB in {place.parent} and {free / 1e9:.1f} GB "
            "are free; point TMPDIR at a larger disk, or choose a smaller --model"
        )


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def _to_disk(folder: Path, *, forget: bool = False) -> None:
    """Waits until a folder's files are on the disk; `forget` drops them from the page cache."""
    for path in _files(folder):
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
            if forget:
                os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(handle)


def _copy(source: Path, copy: Path) -> float:
    """Seconds to read and write everything in a folder; the copy is removed again."""
    _to_disk(source, forget=True)
    copy.mkdir()
    start = time.perf_counter()
    for path in _files(source):
        with path.open("rb") as reader, (copy / path.name).open("wb") as writer:
            shutil.copyfileobj(reader, writer, _BLOCK)
    _to_disk(copy)
    seconds = time.perf_counter() - start
    shutil.rmtree(copy)
    return seconds


def _export(checkpoint: Path, out: Path, precision: str, settings: ExportBench) -> Measured:
    """Exports in a child process; the bundle is removed again."""
    _to_disk(checkpoint, forget=True)
    command = ["export", str(checkpoint), "--out", str(out), "--precision", precision]
    start = time.perf_counter()
    used = _edgespec([*command, "--segments", str(settings.segments)])
    _to_disk(out)
    seconds = time.perf_counter() - start
    size = sum(path.stat().st_size for path in _files(out))
    load = _load(out) if settings.load else None
    shutil.rmtree(out)
    return Measured(used["peak"] / 1e6, seconds, used["cpu"], size / 1e6, load)


def _edgespec(arguments: Sequence[str]) -> dict[str, Any]:
    """Resources that an `edgespec` command used, measured by `bench.lab.measured_process`.

    Raises `EdgespecError` where the command fails.
    """
    watched = [
        sys.executable,
        "-m",
        "bench.lab.measured_process",
        sys.executable,
        "-m",
        "edgespec",
        *arguments,
    ]
    done = subprocess.run(watched, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True)
    used: dict[str, Any] = {"code": done.returncode}
    if not done.returncode:
        used = json.loads(done.stdout.splitlines()[-1])
    if used["code"]:
        raise EdgespecError(
            f"'edgespec {' '.join(arguments)}' failed with exit code {used['code']}"
        )
    return used


def _load(bundle: Path) -> dict[str, Any]:
    command = [sys.executable, "-m", "edgespec", "bench", "load", str(bundle), "--json"]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True)
    if done.returncode:
        raise EdgespecError(f"loading {bundle} failed with exit code {done.returncode}")
    figures: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return figures


def _print(figures: dict[str, Any]) -> None:
    title = f"{figures['model']}: export of a checkpoint of {figures['checkpoint_mb']} MB"
    table = Table(title=f"{title} into {figures['segments']} segments", box=None)
    table.add_column("precision")
    for column in ("peak memory", "time", "times a plain copy", "CPU time", "bundle"):
        table.add_column(column, justify="right")
    for precision, peak in figures["peak_rss_mb"].items():
        table.add_row(
            precision,
            f"{peak} MB",
            f"{figures['seconds'][precision]} s",
            f"{figures['times_copy'][precision]}",
            f"{figures['cpu_seconds'][precision]} s",
            f"{figures['bundle_mb'][precision]} MB",
        )
    console = Console(highlight=False)
    console.print(table)
    for precision, load in figures["load"].items():
        console.print(
            f"loading {precision}: at most {load['peak_times']} times its weights of "
            f"{load['weights_mb']} MB, then {load['steady_times']}"
        )
    verdict = "within" if figures["within_limit"] else "above"
    console.print(
        f"{verdict} the limit of {figures['limit_mb']} MB: {LAYERS} layers of "
        f"{figures['layer_mb']} MB and {BESIDE_MB} MB"
    )
