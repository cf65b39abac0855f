"""The plot of fleets. Needs matplotlib (extra `plots`)."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from bench.fleet.figures import FleetCell, FleetFigures
from bench.fleet.search import SERVED_RATIO
from bench.lab.plots import Lines, Series, role_of, write_plot
from edgespec.errors import EdgespecError

PANEL_INCHES = (5.5, 4.0)


def plot_fleet(path: Path, figures: FleetFigures) -> None:
    """Share of the devices that got their target rate, and tokens a second, by devices.

    The ending of `path` chooses the format. Raises `EdgespecError` if nothing was measured, or if
    the file cannot be written.
    """
    if not figures.cells:
        raise EdgespecError("no fleet was measured: there is nothing to plot")
    met = _panel(
        figures, "share of the devices that got the target rate", lambda cell: cell.share_met,
        (SERVED_RATIO,),
    )  # fmt: skip
    tokens = _panel(figures, "tokens/s, all devices", lambda cell: cell.tokens_per_s)
    title = f"{figures.profile}, target rate {figures.target_rate:g} tokens/s"
    write_plot(path, [met, tokens], title=title, panel_inches=PANEL_INCHES)


def _panel(
    figures: FleetFigures,
    title: str,
    value: Callable[[FleetCell], float],
    levels: tuple[float, ...] = (),
) -> Lines:
    series = []
    for method in figures.methods:
        cells = [cell for cell in figures.cells if cell.method == method]
        devices = [cell.devices for cell in cells]
        series.append(Series(method, [value(cell) for cell in cells], devices, role_of(method)))
    return Lines(series, title=title, x_label="devices", levels=levels)
