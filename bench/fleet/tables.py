"""Tables of fleets: what each method did for so many devices, and how many it can serve."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from msgspec import UnsetType
from rich.table import Table

from bench.fleet.figures import (
    MAX_GENERATOR_RATIO,
    MAX_LATE_S,
    MAX_STOLEN_RATIO,
    FleetCell,
    FleetFigures,
    FleetService,
)
from bench.lab.energy import energy_columns
from bench.lab.methods import EDGESPEC
from bench.lab.tables import Column, table


class FleetRow(NamedTuple):
    devices: int
    method: str
    service: FleetService
    cell: FleetCell | None
    """None for the devices with a real draft, whose cloud and machine are in the row above."""


COLUMNS = (
    Column("devices", "devices", once=True),
    Column("method", "method", left=True),
    Column("met\n%", "service.share_met", ".0f", scale=100, best="highest"),
    Column("goodput\ntokens/s", "service.goodput", ".0f", best="highest"),
    Column("all\ntokens/s", "service.tokens_per_s", ".0f"),
    Column("first ms\np50/p95", "service.first_token_ms/service.first_token_p95_ms", ".0f"),
    Column("gaps ms\np50/p99", "service.p50_ms/service.p99_ms", ".0f"),
    Column("steps\n/token", "service.steps_per_token", ".2f"),
    Column("rows\np50/p95", "cell.rows_p50/cell.rows_p95", ".0f"),
    Column("step\nms", "cell.step_ms", ".0f"),
    Column("bytes\nup/down", "service.bytes_up_per_token/service.bytes_down_per_token", ".0f"),
    Column("cloud\nMB", "cell.memory_mb", ".0f"),
    Column("cloud\nbusy %", "cell.cloud_busy", ".0f", scale=100),
    Column("bench\nbusy %", "cell.generator", ".0f", scale=100),
)


def fleet_table(figures: FleetFigures) -> Table:
    """A section for each fleet size, a row for each method, and one more for real devices."""
    order = figures.methods.index
    cells = sorted(figures.cells, key=lambda cell: (cell.devices, order(cell.method)))
    rows = [row for cell in cells for row in _rows(cell)]
    return table(
        f"{figures.profile}, target rate {figures.target_rate:g} tokens/s each",
        COLUMNS + energy_columns(rows, lambda row: row.cell and row.cell.energy),
        rows,
        section=lambda row: row.devices,
        caption="met: devices that got the target rate; goodput: tokens of those; first: to the "
        "first token; gaps: between tokens\nsteps: of the target, for one session; rows: sessions "
        "of a step; bytes: a token\nbusy: of their core; bench: the devices; !: unreliable, see "
        "below",
    )


def _rows(cell: FleetCell) -> list[FleetRow]:
    rows = [FleetRow(cell.devices, cell.method + ("" if cell.reliable else " !"), cell, cell)]
    if not isinstance(cell.real, UnsetType):
        real = f"… {cell.real.devices} real draft"
        rows.append(FleetRow(cell.devices, real, cell.real, None))
    return rows


class CapacityRow(NamedTuple):
    method: str
    serves: str
    fails: int | None
    edgespec_ratio: float | None


def capacity_table(figures: FleetFigures) -> Table:
    """A row for each method: the largest fleet that was served, the next larger one that was not,
    and how many times as many devices edgespec serves."""
    return table(
        "capacity: devices, 95 % of which get the target rate",
        (
            Column("method", "method", left=True),
            Column("serves", "serves"),
            Column("not any more", "fails"),
            Column("edgespec to it", "edgespec_ratio", ".2f"),
        ),
        [_capacity(figures, name) for name in figures.methods],
    )


def _capacity(figures: FleetFigures, method: str) -> CapacityRow:
    serves, fails = figures.capacity[method], figures.fails[method]
    edgespec = figures.capacity.get(EDGESPEC)
    return CapacityRow(
        method,
        str(serves) if fails else f"{serves} or more",
        fails,
        edgespec / serves if edgespec is not None and serves else None,
    )


def fleet_notes(figures: FleetFigures) -> str:
    """How reliable the figures are, and which searches are not finished."""
    cells = figures.cells
    notes = [_generator_note(cells)] if cells else []
    late_ms = 1e3 * MAX_LATE_S
    busy = [c for c in cells if c.generator > MAX_GENERATOR_RATIO or c.late_p95_ms > late_ms]
    if busy:
        notes.append(
            f"It was too busy (over {MAX_GENERATOR_RATIO:.0%}, or {late_ms:g} ms late) to be "
            f"reliable for: {_names(busy)}."
        )
    disturbed = [cell for cell in cells if cell.stolen > MAX_STOLEN_RATIO]
    if disturbed:
        notes.append(
            f"Others computed on the cloud's core for more than {MAX_STOLEN_RATIO:.0%} of the "
            f"time; measure again on a quiet machine: {_names(disturbed)}."
        )
    open_ = [name for name in figures.methods if not figures.confirmed[name]]
    if open_:
        notes.append(f"Not narrowed down to neighbouring fleets: {', '.join(open_)}.")
    return "\n".join(notes)


def _generator_note(cells: Sequence[FleetCell]) -> str:
    busiest = max(cells, key=lambda cell: cell.generator)
    latest = max(cells, key=lambda cell: cell.late_p95_ms)
    return (
        f"The load generator used at most {busiest.generator:.0%} of its core "
        f"({busiest.method}, {busiest.devices} devices); of its sleeps 95 % ended at "
        f"most {latest.late_p95_ms:.1f} ms late, half of them {latest.late_p50_ms:.1f} "
        f"({latest.method}, {latest.devices} devices)."
    )


def _names(cells: Sequence[FleetCell]) -> str:
    return ", ".join(f"{cell.method} with {cell.devices} devices" for cell in cells)
