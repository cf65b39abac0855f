"""Plots of methods over links of different round-trip times. Needs matplotlib (extra `plots`)."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from bench.lab.plots import save
from edgespec.errors import EdgespecError

WITHOUT = "edgespec without "
MARKERS = "osD^vPX*"
PANELS = (
    ("tokens_per_s", "tokens/s", None),
    ("ratio_to_cloud", "speed, relative to cloud", 1.0),
    ("p99_ms", "p99 between tokens [ms]", None),
)


def plot_link(path: Path, figures: dict[str, Any]) -> None:
    """Tokens a second, their ratio to the cloud alone, and the p99 between tokens, against RTT.

    A method that was not run at an RTT leaves a gap. The ending of `path` chooses the format.
    Raises `EdgespecError` where nothing was measured, or where the file cannot be written.
    """
    figure = _figure(figures, (13, 4.8))
    for axes, (name, label, line) in zip(figure.subplots(1, 3), PANELS, strict=True):
        _lines(axes, figures, name)
        if line is not None:
            axes.axhline(line, color="grey", linestyle=":", zorder=1)
        axes.set_xticks(figures["rtts_ms"], _labels(figures["rtts_ms"]))
        axes.set(xlabel="RTT [ms]", title=label, ylim=(0, None))
        axes.grid(alpha=0.3)
    handles, labels = axes.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=5, frameon=False)
    save(figure, path)


def plot_ablation(path: Path, figures: dict[str, Any]) -> None:
    """What "edgespec" loses without each of its parts: tokens a second relative to it, by RTT.

    Raises `EdgespecError` where no part was left out, or where the file cannot be written.
    """
    methods = [method for method in figures["methods"] if method.startswith(WITHOUT)]
    if not methods:
        raise EdgespecError(f'no method is called "{WITHOUT}…": there is nothing to plot')
    rtts = figures["rtts_ms"]
    figure = _figure(figures, (max(7.0, 2 + 0.35 * len(rtts) * (len(methods) + 1)), 4.4))
    axes = figure.subplots()
    full_speeds = _series(figures, "edgespec", "tokens_per_s")
    width = 0.8 / len(methods)
    for number, method in enumerate(methods):
        speeds = _series(figures, method, "tokens_per_s")
        ratios = [
            speed / full if full else math.nan
            for speed, full in zip(speeds, full_speeds, strict=True)
        ]
        places = [place - 0.4 + (number + 0.5) * width for place in range(len(rtts))]
        bars = axes.bar(places, ratios, width * 0.92, label=method.removeprefix("edgespec "))
        labels = ["" if math.isnan(ratio) else f"{ratio:.2f}" for ratio in ratios]
        axes.bar_label(bars, labels, fontsize=9, label_type="center", color="white", rotation=90)
    axes.axhline(1, color="grey", linestyle=":", zorder=3)
    axes.set_xticks(range(len(rtts)), [f"{rtt:g}" for rtt in rtts])
    axes.set(xlabel="RTT [ms]", ylabel="tokens/s, relative to edgespec")
    figure.legend(loc="outside lower center", ncols=4, frameon=False)
    save(figure, path)


def _figure(figures: dict[str, Any], size: tuple[float, float]) -> Figure:
    if not figures["cells"]:
        raise EdgespecError("no method was measured at any RTT: there is nothing to plot")
    figure = Figure(figsize=size, layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(figures["pair"], fontsize="large")
    return figure


def _series(figures: dict[str, Any], method: str, name: str) -> list[float]:
    """One value an RTT; NaN, which is not drawn, where there is none."""
    cells = {cell["rtt_ms"]: cell for cell in figures["cells"] if cell["method"] == method}
    values = [cells.get(rtt, {}).get(name) for rtt in figures["rtts_ms"]]
    return [math.nan if value is None else value for value in values]


def _labels(rtts: list[float]) -> list[str]:
    """Every RTT has a tick; a label that would run into the one before it is left out."""
    labels: list[str] = []
    last = -math.inf
    for rtt in rtts:
        clear = rtt - last >= 0.07 * (max(rtts) - min(rtts))
        labels.append(f"{rtt:g}" if clear else "")
        last = rtt if clear else last
    return labels


def _lines(axes: Axes, figures: dict[str, Any], name: str) -> None:
    """What "edgespec" is without a part stands back, behind whole methods."""
    whole = 0
    for number, method in enumerate(figures["methods"]):
        part = method.startswith(WITHOUT)
        axes.plot(
            figures["rtts_ms"],
            _series(figures, method, name),
            marker=MARKERS[number % len(MARKERS)],
            markersize=4 if part else 5,
            color="#b0b0b0" if part else f"C{whole % 10}",
            linestyle="--" if part else "-",
            linewidth=0.9 if part else 2.6 if method == "edgespec" else 1.6,
            label=method,
            zorder=2 if part else 3,
        )
        whole += not part
