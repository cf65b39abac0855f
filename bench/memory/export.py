"""`edgespec bench export`: peak memory and time of exporting a checkpoint larger than memory.

A Llama of a known model's shapes is written from random numbers (`bench.lab.random_checkpoint`) and
exported by a process of its own, whose peak memory the kernel reports when it has ended
(`bench.lab.measured_process`).

Times are relative to a plain copy of the checkpoint in the same run. It is copied before and after
the exports, and the faster copy counts, since the speed of disks varies. Each measurement begins
with the checkpoint outside the page cache and ends when all written data is on the disk. Only one
copy or bundle exists at a time.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import msgspec
from rich.console import Console
from rich.table import Table

from bench.lab.random_checkpoint import MODELS, layer_shapes, nbytes, shards, write_checkpoint
from bench.lab.report import print_json
from bench.lab.tables import Column, table
from bench.memory import disk
from bench.memory.load import LoadFigures
from edgespec.errors import EdgespecError
from edgespec.progress import progress

LIMIT_LAYERS, LIMIT_BASE_MB = 3, 300
"""Limit of an export's peak memory: the weights of so many layers, and this for the process."""
_LARGEST_BUNDLE_RATIO = {"fp32": 2.0, "fp16": 1.0, "int8": 0.75, "int4": 0.5}
"""Largest bundle by precision, relative to the fp16 checkpoint. The embedding is fp32 if the layers
are integers."""


@dataclass(frozen=True)
class ExportBench:
    model: str = "1b"
    """One of `MODELS`."""
    segments: int = 8
    precisions: tuple[str, ...] = ("fp16", "int4")
    load: bool = False
    """Measure loading each bundle too (`bench.memory.load`)."""


class MeasuredExport(NamedTuple):
    peak_mb: float
    seconds: float
    """Time until the bundle is on the disk."""
    cpu_seconds: float
    bundle_mb: float
    load: LoadFigures | None = None


class ProcessUsage(msgspec.Struct, frozen=True):
    """Output of `bench.lab.measured_process`."""

    code: int
    """Exit code."""
    peak: int
    """Peak resident memory in bytes."""
    cpu: float
    """CPU time in seconds."""


class ExportFigures(msgspec.Struct, frozen=True):
    """Result of `bench export`; dictionaries are by precision."""

    model: str
    segments: int
    peak_rss_mb: dict[str, int]
    seconds: dict[str, float]
    cpu_seconds: dict[str, float]
    bundle_mb: dict[str, int]
    checkpoint_mb: int
    layer_mb: int
    copy_seconds: list[float]
    times_copy: dict[str, float]
    """Time of an export, relative to the faster copy."""
    limit_mb: int
    within_limit: bool
    load: dict[str, LoadFigures]


class _Row(NamedTuple):
    precision: str
    figures: ExportFigures


COLUMNS = (
    Column("precision", "precision", left=True),
    Column("peak memory", lambda row: f"{row.figures.peak_rss_mb[row.precision]} MB"),
    Column("time", lambda row: f"{row.figures.seconds[row.precision]} s"),
    Column("times a plain copy", lambda row: row.figures.times_copy[row.precision]),
    Column("CPU time", lambda row: f"{row.figures.cpu_seconds[row.precision]} s"),
    Column("bundle", lambda row: f"{row.figures.bundle_mb[row.precision]} MB"),
)


def run(settings: ExportBench, *, as_json: bool) -> bool:
    """Measures and prints; with `as_json`, one JSON object is the last line. Returns True if the
    peak stayed within the limit.

    Raises `EdgespecError` if the temporary folder has no room, or if an export fails.
    """
    config = MODELS[settings.model]
    total_bytes = sum(nbytes(shard) for shard in shards(config))
    with tempfile.TemporaryDirectory(prefix="edgespec-bench-") as temporary:
        folder = Path(temporary)
        largest = max(1.0, *(_LARGEST_BUNDLE_RATIO[p] for p in settings.precisions))
        disk.check_free(folder, total_bytes * (1 + largest))
        checkpoint = folder / "checkpoint"
        with progress("writing weights", total_bytes) as advance:
            write_checkpoint(checkpoint, config, advance)
        copies = [disk.copy_seconds(checkpoint, folder / "copy")]
        measured = {
            precision: _export(checkpoint, folder / f"bundle-{precision}", precision, settings)
            for precision in settings.precisions
        }
        copies.append(disk.copy_seconds(checkpoint, folder / "copy"))
    figures = _figures(settings, total_bytes, copies, measured)
    _print(figures)
    if as_json:
        print_json(figures)
    return figures.within_limit


def _figures(
    settings: ExportBench,
    total_bytes: int,
    copies: Sequence[float],
    measured: dict[str, MeasuredExport],
) -> ExportFigures:
    layer_bytes = nbytes(layer_shapes(MODELS[settings.model]))
    limit_mb = LIMIT_LAYERS * layer_bytes / 1e6 + LIMIT_BASE_MB
    return ExportFigures(
        model=settings.model,
        segments=settings.segments,
        peak_rss_mb={p: round(m.peak_mb) for p, m in measured.items()},
        seconds={p: round(m.seconds, 1) for p, m in measured.items()},
        cpu_seconds={p: round(m.cpu_seconds, 1) for p, m in measured.items()},
        bundle_mb={p: round(m.bundle_mb) for p, m in measured.items()},
        checkpoint_mb=round(total_bytes / 1e6),
        layer_mb=round(layer_bytes / 1e6),
        copy_seconds=[round(seconds, 1) for seconds in copies],
        times_copy={p: round(m.seconds / min(copies), 2) for p, m in measured.items()},
        limit_mb=round(limit_mb),
        within_limit=all(m.peak_mb <= limit_mb for m in measured.values()),
        load={p: m.load for p, m in measured.items() if m.load is not None},
    )


def _export(checkpoint: Path, out: Path, precision: str, settings: ExportBench) -> MeasuredExport:
    """Exports in a child process. The bundle is removed afterwards."""
    disk.flush(checkpoint, forget=True)
    command = ["export", str(checkpoint), "--out", str(out), "--precision", precision]
    start = time.perf_counter()
    usage = _edgespec([*command, "--segments", str(settings.segments)])
    disk.flush(out)
    seconds = time.perf_counter() - start
    bundle_bytes = disk.nbytes(out)
    load = _load(out) if settings.load else None
    shutil.rmtree(out)
    return MeasuredExport(usage.peak / 1e6, seconds, usage.cpu, bundle_bytes / 1e6, load)


def _edgespec(arguments: Sequence[str]) -> ProcessUsage:
    """Runs an `edgespec` command under `bench.lab.measured_process`.

    Raises `EdgespecError` if the command fails.
    """
    command = [sys.executable, "-m", "edgespec", *arguments]
    measured = [sys.executable, "-m", "bench.lab.measured_process", *command]
    done = subprocess.run(measured, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True)
    code = done.returncode
    if not code:
        usage = msgspec.json.decode(done.stdout.splitlines()[-1], type=ProcessUsage)
        if not usage.code:
            return usage
        code = usage.code
    raise EdgespecError(f"'edgespec {' '.join(arguments)}' failed with exit code {code}")


def _load(bundle: Path) -> LoadFigures:
    """Runs `edgespec bench load` in a child process. Raises `EdgespecError` if it fails."""
    command = [sys.executable, "-m", "edgespec", "bench", "load", str(bundle), "--json"]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True)
    if done.returncode:
        raise EdgespecError(f"loading {bundle} failed with exit code {done.returncode}")
    return msgspec.json.decode(done.stdout.splitlines()[-1], type=LoadFigures)


def _table(figures: ExportFigures) -> Table:
    title = f"{figures.model}: export of a checkpoint of {figures.checkpoint_mb} MB"
    rows = [_Row(precision, figures) for precision in figures.peak_rss_mb]
    return table(f"{title} into {figures.segments} segments", COLUMNS, rows)


def _print(figures: ExportFigures) -> None:
    console = Console(highlight=False)
    console.print(_table(figures))
    for precision, load in figures.load.items():
        console.print(
            f"loading {precision}: at most {load.peak_times} times its weights of "
            f"{load.weights_mb} MB, then {load.steady_times}"
        )
    verdict = "within" if figures.within_limit else "above"
    console.print(
        f"{verdict} the limit of {figures.limit_mb} MB: {LIMIT_LAYERS} layers of "
        f"{figures.layer_mb} MB and {LIMIT_BASE_MB} MB"
    )
