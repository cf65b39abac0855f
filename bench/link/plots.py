"""Plots of methods over links of different round-trip times. Needs matplotlib (extra `plots`)."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

from bench.lab.methods import EDGESPEC, WITHOUT
from bench.lab.plots import Bars, Lines, Series, role_of, write_plot
from bench.link.figures import LinkCell, LinkFigures
from edgespec.errors import EdgespecError

ACROSS_INCHES, HIGH_INCHES = 4.3, 4.3
BAR_INCHES = 0.35


def plot_link(path: Path, figures: LinkFigures) -> None:
    """Tokens a second, their ratio to the cloud alone, and the p99 between tokens, against RTT.

    A method that was not measured at an RTT leaves a gap. The ending of `path` chooses the format.
    Raises `EdgespecError` if nothing was measured, or if the file cannot be written.
    """
    _check_measured(figures)
    panels = [
        _panel(figures, "tokens/s", lambda cell: cell.tokens_per_s),
        _panel(figures, "speed, relative to cloud", lambda cell: cell.ratio_to_cloud, (1.0,)),
        _panel(figures, "p99 between tokens [ms]", lambda cell: cell.p99_ms),
    ]
    write_plot(path, panels, title=figures.pair, panel_inches=(ACROSS_INCHES, HIGH_INCHES))


def plot_ablation(path: Path, figures: LinkFigures) -> None:
    """Tokens a second of edgespec without each of its parts, relative to all of edgespec, by RTT.

    Raises `EdgespecError` if no part was left out, or if the file cannot be written.
    """
    _check_measured(figures)
    parts = [method for method in figures.methods if method.startswith(WITHOUT)]
    if not parts:
        raise EdgespecError(f'no method is called "{WITHOUT}…": there is nothing to plot')
    full = _values(figures, EDGESPEC, lambda cell: cell.tokens_per_s)
    series = []
    for method in parts:
        speeds = _values(figures, method, lambda cell: cell.tokens_per_s)
        ratios = [a / b if b else math.nan for a, b in zip(speeds, full, strict=True)]
        series.append(Series(method.removeprefix(f"{EDGESPEC} "), ratios))
    bars = Bars(
        series, [f"{rtt:g}" for rtt in figures.rtts_ms], x_label="RTT [ms]",
        y_label=f"tokens/s, relative to {EDGESPEC}", levels=(1.0,), form=".2f",
    )  # fmt: skip
    width = 2 + BAR_INCHES * len(figures.rtts_ms) * (len(parts) + 1)
    write_plot(path, [bars], title=figures.pair, panel_inches=(width, HIGH_INCHES))


def _check_measured(figures: LinkFigures) -> None:
    if not figures.cells:
        raise EdgespecError("no method was measured at any RTT: there is nothing to plot")


def _panel(
    figures: LinkFigures,
    title: str,
    value: Callable[[LinkCell], float],
    levels: tuple[float, ...] = (),
) -> Lines:
    rtts = figures.rtts_ms
    series = [
        Series(method, _values(figures, method, value), rtts, role_of(method))
        for method in figures.methods
    ]
    return Lines(series, title=title, x_label="RTT [ms]", ticks=rtts, levels=levels)


def _values(figures: LinkFigures, method: str, value: Callable[[LinkCell], float]) -> list[float]:
    """One value for each RTT; NaN, which is not drawn, where there is none."""
    cells = {cell.rtt_ms: cell for cell in figures.cells if cell.method == method}
    return [value(cells[rtt]) if rtt in cells else math.nan for rtt in figures.rtts_ms]
