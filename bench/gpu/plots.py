"""Plot of step times, and of their ratios to the bound, by rows and by chunk size."""

from __future__ import annotations

from pathlib import Path

from bench.gpu.figures import GpuFigures, Kind
from bench.lab.plots import Lines, Series, write_plot

PANELS: tuple[tuple[Kind, str, str], ...] = (
    ("verify", "verify of 5", "rows"),
    ("prefill", "prompt in chunks", "tokens"),
)
"""Kind of step, title, and unit of the x axis."""


def plot_gpu(path: Path, figures: GpuFigures) -> None:
    """The suffix of `path` selects the file format. Raises `EdgespecError` if the file cannot be
    written."""
    write_plot(
        path,
        [_times(figures, *panel) for panel in PANELS]
        + [_ratios(figures, *panel) for panel in PANELS],
        title=f"{figures.shapes}, {figures.precision}, on {figures.device}",
        across=2,
    )


def _times(figures: GpuFigures, kind: Kind, title: str, unit: str) -> Lines:
    bounds = {step.size: step.bound_ms for step in figures.steps if step.kind == kind}
    series = [
        Series(backend, [step.ms for step in steps], [step.size for step in steps])
        for backend in figures.backends
        if (steps := figures.steps_of(backend, kind))
    ]
    bound = Series("bound", list(bounds.values()), list(bounds), role="bound")
    return Lines([*series, bound], title, unit, "ms", ticks=list(bounds), doubling=True)


def _ratios(figures: GpuFigures, kind: Kind, title: str, unit: str) -> Lines:
    """Ratios to the bound, with dotted lines at 1 and at the aims."""
    sizes = {step.size: step.aim for step in figures.steps if step.kind == kind}
    series = [
        Series(backend, [step.ratio for step in steps], [step.size for step in steps])
        for backend in figures.backends
        if (steps := figures.steps_of(backend, kind))
    ]
    aims = {aim for aim in sizes.values() if aim is not None}
    return Lines(
        series, title, unit, "ratio to the bound", ticks=list(sizes), doubling=True,
        levels=[1, *sorted(aims)],
    )  # fmt: skip
