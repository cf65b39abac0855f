"""The table writer of the benches: columns that say what they show, and one row for each object.

table("methods", (Column("method", "name", left=True), Column("tokens/s", "rate", ".1f")), rows)
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any, Literal

from rich import box
from rich.table import Table
from rich.text import Text

MISSING = "–"
MIN_WIDTH_COLUMNS = 60
"""Characters of a table whose caption or notes are longer than its rows."""

Row = Any
"""A dataclass, struct or named tuple; columns name its attributes."""


@dataclass(frozen=True)
class Column:
    """One column of a table."""

    header: str
    value: str | Callable[[Row], object]
    """Attribute of the row, dotted for an attribute of an attribute, or a function of the row.
    Attributes joined by a slash are shown joined by a slash. None is shown as a dash."""
    form: str = ""
    """Format specification of numbers."""
    scale: float = 1.0
    """Factor of numbers, such as 100 for a percentage."""
    left: bool = False
    """Align to the left."""
    once: bool = False
    """Leave a cell empty where the row above, in the same section, shows the same."""
    best: Literal["highest", "lowest"] | None = None
    """The value of a section that is shown bold."""
    fold: bool = False
    """Break long text into several lines."""

    def values(self, row: Row) -> list[object]:
        if callable(self.value):
            return [self.value(row)]
        return [_attribute(row, path) for path in self.value.split("/")]

    def text(self, row: Row) -> str:
        return "/".join(self._written(value) for value in self.values(row))

    def _written(self, value: object) -> str:
        if value is None:
            return MISSING
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            return format(value if self.scale == 1 else self.scale * value, self.form)
        return str(value)


def table(
    title: str,
    columns: Sequence[Column],
    rows: Sequence[Row],
    *,
    section: Callable[[Row], object] | None = None,
    caption: str = "",
    min_width: int | None = None,
) -> Table:
    """A table with one line for each row.

    Sections are runs of rows for which `section` returns the same; a blank line parts them.
    """
    made = empty_table(title, caption, min_width)
    for column in columns:
        made.add_column(
            column.header,
            justify="left" if column.left else "right",
            no_wrap=not column.fold,
            overflow="fold" if column.fold else "ellipsis",
        )
    for _, group in groupby(rows, section or (lambda _: None)):
        members = list(group)
        for cells in zip(*(_cells(column, members) for column in columns), strict=True):
            made.add_row(*cells)
        if section:
            made.add_section()
    return made


def empty_table(title: str, caption: str = "", min_width: int | None = None) -> Table:
    """A table in the style of all benches, without columns."""
    return Table(
        title=title,
        caption=caption or None,
        box=box.SIMPLE,
        padding=(0, 1, 0, 0),
        title_justify="left",
        caption_justify="left",
        min_width=min_width,
    )


def _cells(column: Column, rows: Sequence[Row]) -> list[Text]:
    """One column of a section."""
    best = _best(column, rows)
    cells: list[Text] = []
    above: str | None = None
    for row in rows:
        text = column.text(row)
        shown = "" if column.once and text == above else text
        bold = best is not None and column.values(row)[0] == best
        cells.append(Text(shown, style="bold" if bold else ""))
        above = text
    return cells


def _best(column: Column, rows: Sequence[Row]) -> float | None:
    if column.best is None or len(rows) < 2:
        return None
    known = [v for v in (column.values(row)[0] for row in rows) if isinstance(v, (int, float))]
    if not known:
        return None
    return max(known) if column.best == "highest" else min(known)


def _attribute(row: Row, path: str) -> object:
    """None where any part of the path is None."""
    value = row
    for name in path.split("."):
        value = None if value is None else getattr(value, name)
    return value
