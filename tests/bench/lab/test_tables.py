"""The table writer."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
from rich.console import Console

from bench.lab.tables import Column, table


@dataclass
class Times:
    p50_ms: float
    p95_ms: float | None


@dataclass
class Figure:
    devices: int
    method: str
    share: float | None
    times: Times | None = None


ROWS = [
    Figure(8, "cloud", 0.5, Times(10.4, 20.6)),
    Figure(8, "[edgespec]", 0.75, Times(1.0, None)),
    Figure(16, "cloud", None),
]
COLUMNS = (
    Column("devices", "devices", once=True),
    Column("method", "method", left=True),
    Column("met\n%", "share", ".0f", scale=100, best="highest"),
    Column("ms\np50/p95", "times.p50_ms/times.p95_ms", ".0f"),
    Column("", lambda row: "!" if row.share is None else ""),
)


def lines(made) -> list[str]:
    console = Console(width=100)
    with console.capture() as capture:
        console.print(made)
    return [" ".join(line.split()) for line in capture.get().splitlines()]


def test_cells_are_written_as_their_columns_say():
    shown = lines(table("fleets", COLUMNS, ROWS, section=lambda row: row.devices, caption="note"))
    assert shown[0] == "fleets"
    assert "8 cloud 50 10/21" in shown
    assert "[edgespec] 75 1/–" in shown, "a name in brackets is no markup, and 8 is shown once"
    assert "16 cloud – –/– !" in shown
    assert shown[-1] == "note"


def test_the_best_of_a_section_is_bold():
    cells = list(table("", COLUMNS, ROWS).columns[2].cells)
    assert [str(cell.style) for cell in cells] == ["", "bold", ""]
    lowest = (Column("ms", "times.p50_ms", best="lowest"),)
    cells = list(table("", lowest, ROWS).columns[0].cells)
    assert [str(cell.style) for cell in cells] == ["", "bold", ""]
    alone = list(table("", COLUMNS, ROWS, section=lambda row: row.method).columns[2].cells)
    assert not any(str(cell.style) for cell in alone), "one row has no best"


def test_a_column_of_an_unknown_attribute_is_an_error():
    with pytest.raises(AttributeError, match="speed"):
        table("", (Column("speed", "speed"),), ROWS)
