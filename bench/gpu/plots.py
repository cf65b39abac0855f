"""Times and ratios to the bound, by rows and by chunk. Needs matplotlib."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from bench.lab.plots import save

TITLES = {"verify": "verify of 5", "prefill": "prompt in chunks"}


def plot_gpu(path: Path, figures: dict[str, Any]) -> None:
    """The ending of `path` chooses the format.

    Raises `EdgespecError` where it cannot be written.
    """
    figure = Figure(figsize=(10, 7), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(2, 2)
    for column, kind in enumerate(TITLES):
        _times(panels[0][column], figures, kind)
        _ratios(panels[1][column], figures, kind)
    figure.suptitle(f"{figures['shapes']}, {figures['precision']}, on {figures['device']}")
    save(figure, path)


def _lines(figures: dict[str, Any], kind: str) -> dict[str, list[dict[str, Any]]]:
    lines: dict[str, list[dict[str, Any]]] = {}
    for step in figures["steps"]:
        if step["kind"] == kind:
            lines.setdefault(step["mode"], []).append(step)
    return lines


def _times(axes: Axes, figures: dict[str, Any], kind: str) -> None:
    steps: list[dict[str, Any]] = []
    for mode, steps in _lines(figures, kind).items():
        sizes = [step["size"] for step in steps]
        axes.plot(sizes, [step["ms"] for step in steps], marker="o", label=mode)
    sizes, bounds = [s["size"] for s in steps], [s["bound_ms"] for s in steps]
    axes.plot(sizes, bounds, color="grey", linestyle="--", label="bound")
    axes.set(title=TITLES[kind], ylabel="ms", ylim=(0, None))
    _doubling(axes, sizes)
    axes.grid(alpha=0.3)
    axes.legend()


def _doubling(axes: Axes, sizes: list[int]) -> None:
    axes.set_xscale("log", base=2)
    axes.set_xticks(sizes, [str(size) for size in sizes])


def _ratios(axes: Axes, figures: dict[str, Any], kind: str) -> None:
    sizes: list[int] = []
    for mode, steps in _lines(figures, kind).items():
        sizes = [step["size"] for step in steps]
        axes.plot(sizes, [step["ratio"] for step in steps], marker="o", label=mode)
    axes.axhline(1, color="grey", linestyle=":")
    if kind == "verify":
        axes.axhline(1.25, color="grey", linestyle="--", label="aim from 8 rows up")
        axes.legend()
    axes.set(xlabel="rows" if kind == "verify" else "tokens", ylabel="ratio", ylim=(0, None))
    _doubling(axes, sizes)
    axes.grid(alpha=0.3)
