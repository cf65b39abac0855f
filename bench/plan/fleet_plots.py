"""Share of the devices that are served against the size of the fleet. Needs matplotlib."""

from __future__ import annotations

import math
import textwrap
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from bench.fleet.search import SERVED_RATIO
from bench.lab.methods import EDGESPEC
from bench.lab.plots import save

ACROSS = 4


def plot_fleets(path: Path, figures: list[dict[str, Any]]) -> None:
    """A panel a profile and promised rate. The ending of `path` chooses the format.

    Raises `EdgespecError` where the file cannot be written.
    """
    panels = [(each["name"], *rate) for each in figures for rate in each["rates"].items()]
    across = min(ACROSS, len(panels))
    down = math.ceil(len(panels) / across)
    figure = Figure(figsize=(max(7.0, 4.0 * across), 3.6 * down + 0.5), layout="constrained")
    FigureCanvasAgg(figure)
    places = figure.subplots(down, across, squeeze=False).flatten()
    lines: dict[str, Any] = {}
    for axes, (name, rate, methods) in zip(places, panels, strict=False):
        axes.set_title("\n".join(textwrap.wrap(name, 34)), fontsize="medium")
        lines |= _panel(axes, float(rate), methods)
    for axes in places[len(panels) :]:
        axes.remove()
    figure.legend(
        list(lines.values()), list(lines), loc="outside lower center", ncols=len(lines),
        frameon=False,
    )  # fmt: skip
    save(figure, path)


def _panel(axes: Axes, rate: float, methods: dict[str, Any]) -> dict[str, Any]:
    """The lines drawn, by method."""
    lines = {}
    for number, (name, method) in enumerate(methods.items()):
        fleets = sorted(method["fleets"], key=lambda each: int(each["devices"]))
        (lines[name],) = axes.plot(
            [each["devices"] for each in fleets],
            [100 * each["served"] for each in fleets],
            color=f"C{number}",
            linewidth=2.6 if name == EDGESPEC else 1.4,
            marker="o",
            markersize=4,
        )
    axes.axhline(100 * SERVED_RATIO, color="grey", linestyle=":", zorder=1)
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_formatter("{x:g}")
    axes.set(xlabel="devices", ylabel=f"served at {rate:g} tokens/s [%]", ylim=(0, 103))
    axes.grid(alpha=0.3)
    return lines
