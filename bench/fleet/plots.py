"""Plots of fleets. Needs matplotlib (extra `plots`)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from bench.fleet.search import SHARE
from bench.lab.plots import save
from bench.link.plots import MARKERS
from edgespec.errors import EdgespecError

PANELS = (
    ("share_met", "devices that got the rate they were promised"),
    ("tokens_per_s", "tokens/s, all devices"),
)


def plot_fleet(path: Path, figures: dict[str, Any]) -> None:
    """Share of the devices whose rate was met, and tokens a second, against devices.

    The ending of `path` chooses the format. Raises `EdgespecError` where nothing was measured, or
    where the file cannot be written.
    """
    if not figures["cells"]:
        raise EdgespecError("no fleet was measured: there is nothing to plot")
    figure = Figure(figsize=(11, 4.4), layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(f"{figures['profile']}, {figures['target_rate']:g} tokens/s promised")
    for axes, (name, label) in zip(figure.subplots(1, 2), PANELS, strict=True):
        for number, method in enumerate(figures["methods"]):
            cells = [cell for cell in figures["cells"] if cell["method"] == method]
            axes.plot(
                [cell["devices"] for cell in cells],
                [cell[name] for cell in cells],
                marker=MARKERS[number % len(MARKERS)],
                color=f"C{number}",
                linewidth=2.6 if method == "edgespec" else 1.6,
                label=method,
            )
        if name == "share_met":
            axes.axhline(SHARE, color="grey", linestyle=":", zorder=1)
        axes.set(xlabel="devices", title=label, ylim=(0, None))
        axes.grid(alpha=0.3)
    handles, labels = axes.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=4, frameon=False)
    save(figure, path)
