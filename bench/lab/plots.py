"""The plot writer of the benches: panels of lines or bars, in one style.

A name has the same colour and marker in all panels of a figure. matplotlib (the extra `plots`) is
imported only when something is drawn.
"""

from __future__ import annotations

import importlib.util
import math
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from bench.lab.methods import EDGESPEC, WITHOUT
from edgespec.errors import EdgespecError, UsageError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MARKERS = "osD^vPX*"
DOTS_PER_INCH = 120
PANEL_INCHES = (4.0, 3.6)
LEAST_WIDTH_INCHES = 7.0
LEGEND_INCHES = 0.5
TITLE_CHARACTERS = 34
CLEAR_TICKS_RATIO = 0.07
"""Share of the axis that two labelled ticks are apart at least."""
BARS_RATIO = 0.8
"""Share of a group's place that its bars fill."""

Role: TypeAlias = Literal["method", "main", "part", "bound"]


@dataclass(frozen=True)
class Series:
    """One line of a panel, or the bars of one colour."""

    name: str
    y: Sequence[float]
    """NaN leaves a gap."""
    x: Sequence[float] = ()
    """Places of a line's points; empty for bars."""
    role: Role = "method"
    """`main` is drawn thick, `part` thin and grey, and `bound` grey without markers."""


@dataclass(frozen=True)
class Lines:
    """A panel of lines."""

    series: Sequence[Series]
    title: str = ""
    x_label: str = ""
    y_label: str = ""
    y_range: tuple[float | None, float | None] = (0, None)
    x_range: tuple[float | None, float | None] | None = None
    ticks: Sequence[float] | None = None
    """Places of the ticks on the x axis; None: matplotlib's choice."""
    doubling: bool = False
    """Draw the x axis in powers of two."""
    levels: Sequence[float] = ()
    """Heights of dotted horizontal lines."""
    diagonal: bool = False
    """Draw a dotted line through the points where x and y are equal."""


@dataclass(frozen=True)
class Bars:
    """A panel of grouped bars: one group for each label, with one bar of each series."""

    series: Sequence[Series]
    groups: Sequence[str]
    title: str = ""
    x_label: str = ""
    y_label: str = ""
    value_range: tuple[float | None, float | None] = (0, None)
    levels: Sequence[float] = ()
    horizontal: bool = False
    form: str = ""
    """Format specification of the numbers inside the bars; empty for no numbers."""


Panel: TypeAlias = Lines | Bars


def role_of(method: str) -> Role:
    """The role of a method of `bench.lab.methods`."""
    if method.startswith(WITHOUT):
        return "part"
    return "main" if method == EDGESPEC else "method"


def require_matplotlib(plot: Path | None) -> None:
    """Raise `ModuleNotFoundError` if a plot is asked for and matplotlib is not installed.

    Every command with `--plot` calls this, or `check_plot_file`, before it measures.
    """
    if plot is not None and importlib.util.find_spec("matplotlib") is None:
        raise ModuleNotFoundError("no matplotlib", name="matplotlib")


def check_plot_file(plot: Path | None) -> None:
    """Check matplotlib, and raise `UsageError` if `plot` cannot be a file in an existing folder."""
    require_matplotlib(plot)
    if plot is not None and (plot.is_dir() or not plot.parent.is_dir()):
        raise UsageError(f"--plot {plot} is no file in a folder that is there; create the folder")


def write_plot(
    path: Path,
    panels: Sequence[Panel],
    *,
    title: str = "",
    across: int = 4,
    legend: Literal["below", "inside"] = "below",
    panel_inches: tuple[float, float] = PANEL_INCHES,
) -> None:
    """Draw `panels` in rows of `across`; the ending of `path` chooses the format.

    The legend stands once below all panels, or inside every panel with more than one name.
    Raises `EdgespecError` if there are no panels, or if the file cannot be written.
    """
    if not panels:
        raise EdgespecError("nothing was measured: there is nothing to plot")
    figure = new_figure(*_size(len(panels), across, panel_inches))
    figure.suptitle(title, fontsize="large")
    across = min(across, len(panels))
    places = figure.subplots(math.ceil(len(panels) / across), across, squeeze=False).flatten()
    styles = _styles(panels)
    handles: dict[str, Any] = {}
    for axes, panel in zip(places, panels, strict=False):
        drawn = _lines(axes, panel, styles) if isinstance(panel, Lines) else _bars(axes, panel)
        if legend == "inside" and len(drawn) > 1:
            axes.legend(fontsize="small")
        handles |= drawn
    for axes in places[len(panels) :]:
        axes.remove()
    if legend == "below":
        figure.legend(
            handles.values(), handles, loc="outside lower center", frameon=False,
            ncols=min(len(handles), 2 + across),
        )  # fmt: skip
    save(figure, path)


def new_figure(width_inches: float, height_inches: float) -> Figure:
    """An empty figure that needs no display."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width_inches, height_inches), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def save(figure: Figure, path: Path) -> None:
    """Raises `EdgespecError` if the file cannot be written."""
    try:
        figure.savefig(path, dpi=DOTS_PER_INCH)
    except (OSError, ValueError) as error:
        raise EdgespecError(f"the plot cannot be written to {path}: {error}") from error


def _size(count: int, across: int, panel_inches: tuple[float, float]) -> tuple[float, float]:
    width, height = panel_inches
    columns = min(across, count)
    rows = math.ceil(count / columns)
    return max(LEAST_WIDTH_INCHES, width * columns), height * rows + LEGEND_INCHES


def _styles(panels: Sequence[Panel]) -> dict[str, dict[str, Any]]:
    """How to draw each name, numbered over all panels in the order of appearance."""
    styles: dict[str, dict[str, Any]] = {}
    colours = 0
    for each in (series for panel in panels for series in panel.series):
        if each.name in styles:
            continue
        if each.role == "bound":
            style = {"color": "grey", "linestyle": "--", "linewidth": 1.4}
        elif each.role == "part":
            style = {"color": "#b0b0b0", "linestyle": "--", "linewidth": 0.9, "markersize": 4}
            style["marker"] = MARKERS[len(styles) % len(MARKERS)]
        else:
            style = {"color": f"C{colours % 10}", "linewidth": 2.6 if each.role == "main" else 1.5}
            style |= {"marker": MARKERS[len(styles) % len(MARKERS)], "markersize": 5}
            colours += 1
        styles[each.name] = style | {"zorder": 3 if each.role in ("main", "method") else 2}
    return styles


def _lines(axes: Axes, panel: Lines, styles: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """The drawn lines by name."""
    drawn = {}
    for each in panel.series:
        (drawn[each.name],) = axes.plot(each.x, each.y, label=each.name, **styles[each.name])
    for level in panel.levels:
        axes.axhline(level, color="grey", linestyle=":", zorder=1)
    if panel.diagonal:
        axes.plot([0, 1], [0, 1], color="grey", linestyle=":", zorder=1)
    if panel.doubling:
        axes.set_xscale("log", base=2)
        axes.xaxis.set_major_formatter("{x:g}")
    if panel.ticks is not None:
        labels = [f"{x:g}" for x in panel.ticks] if panel.doubling else _clear_labels(panel.ticks)
        axes.set_xticks(panel.ticks, labels)
    axes.set(xlabel=panel.x_label, ylabel=panel.y_label, ylim=panel.y_range)
    if panel.x_range is not None:
        axes.set_xlim(*panel.x_range)
    axes.set_title(_wrapped(panel.title), fontsize="medium")
    axes.grid(alpha=0.3)
    return drawn


def _bars(axes: Axes, panel: Bars) -> dict[str, Any]:
    """The drawn bars by name."""
    drawn = {}
    thickness = BARS_RATIO / max(len(panel.series), 1)
    for number, each in enumerate(panel.series):
        places = [
            place - BARS_RATIO / 2 + (number + 0.5) * thickness
            for place in range(len(panel.groups))
        ]
        draw = axes.barh if panel.horizontal else axes.bar
        drawn[each.name] = bars = draw(places, each.y, thickness * 0.92, label=each.name)
        if panel.form:
            labels = ["" if math.isnan(value) else format(value, panel.form) for value in each.y]
            turned = 0 if panel.horizontal else 90
            axes.bar_label(
                bars, labels, fontsize=9, label_type="center", color="white", rotation=turned
            )
    for level in panel.levels:
        (axes.axvline if panel.horizontal else axes.axhline)(
            level, color="grey", linestyle=":", zorder=3
        )
    axes.set(xlabel=panel.x_label, ylabel=panel.y_label, title=_wrapped(panel.title))
    if panel.horizontal:
        axes.set_yticks(range(len(panel.groups)), panel.groups)
        axes.invert_yaxis()
        axes.set_xlim(*panel.value_range)
    else:
        axes.set_xticks(range(len(panel.groups)), panel.groups)
        axes.set_ylim(*panel.value_range)
    return drawn


def _clear_labels(ticks: Sequence[float]) -> list[str]:
    """A label for each tick, empty where it would touch the label before it."""
    labels: list[str] = []
    last = -math.inf
    for tick in ticks:
        clear = tick - last >= CLEAR_TICKS_RATIO * (max(ticks) - min(ticks))
        labels.append(f"{tick:g}" if clear else "")
        last = tick if clear else last
    return labels


def _wrapped(title: str) -> str:
    return "\n".join(textwrap.wrap(title, TITLE_CHARACTERS))
