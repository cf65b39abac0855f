"""Ratios to the cloud alone against round-trip time, by profile. Needs matplotlib."""

from __future__ import annotations

import math
import textwrap
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from bench.lab.plots import save
from bench.plan.tables import COLUMNS

ACROSS = 4


def plot_plan(path: Path, figures: list[dict[str, Any]]) -> None:
    """A panel a profile. The ending of `path` chooses the format.

    Raises `EdgespecError` where the file cannot be written.
    """
    across = min(ACROSS, len(figures))
    down = math.ceil(len(figures) / across)
    figure = Figure(figsize=(max(7.0, 4.0 * across), 3.6 * down + 0.5), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(down, across, squeeze=False).flatten()
    lines: dict[str, Any] = {}
    for axes, each in zip(panels, figures, strict=False):
        lines |= _panel(axes, each)
    for axes in panels[len(figures) :]:
        axes.remove()
    names = [name for name in COLUMNS if name in lines]
    handles = [lines[name] for name in names]
    figure.legend(handles, names, loc="outside lower center", ncols=len(names), frameon=False)
    save(figure, path)


def _panel(axes: Axes, figures: dict[str, Any]) -> dict[str, Any]:
    """The lines drawn, by method."""
    lines = {}
    for number, name in enumerate(COLUMNS):
        ratios = [figures["ratio_to_cloud"][f"{rtt:g}"].get(name) for rtt in figures["rtts_ms"]]
        if any(ratio is None for ratio in ratios):
            continue
        (lines[name],) = axes.plot(
            figures["rtts_ms"],
            ratios,
            color="grey" if name == "sketch" else f"C{number}",
            linestyle="--" if name == "sketch" else "-",
            linewidth=2.6 if name == "edgespec" else 1.4,
            marker="" if name == "sketch" else "o",
            markersize=4,
        )
    axes.axhline(1, color="grey", linestyle=":", zorder=1)
    axes.set_title("\n".join(textwrap.wrap(figures["name"], 34)), fontsize="medium")
    axes.set(xlabel="RTT [ms]", ylabel="speed, relative to cloud", ylim=(0, None))
    axes.grid(alpha=0.3)
    return lines
