"""The table of methods over links of different round-trip times."""

from __future__ import annotations

from typing import NamedTuple

from rich.table import Table

from bench.lab.energy import energy_columns
from bench.lab.tables import Column, table
from bench.link.figures import HIT_KINDS, LinkCell, LinkFigures
from engines.machine.doctor import Machine


class LinkRow(NamedTuple):
    rtt_ms: float
    method: str
    cell: LinkCell | None
    """None: not measured at this round-trip time."""


def _hits(kind: str) -> Column:
    def share(row: LinkRow) -> float | None:
        return row.cell.hits.get(kind) if row.cell else None

    return Column(f"{kind}\n%", share, ".0f", scale=100)


COLUMNS = (
    Column("RTT\nms", "rtt_ms", "g", once=True),
    Column("method", "method", left=True),
    Column("tokens\n/s", "cell.tokens_per_s", ".1f", best="highest"),
    Column("ratio\ncloud", "cell.ratio_to_cloud", ".2f"),
    Column("first\nms", "cell.first_token_ms", ".0f"),
    Column("p50\nms", "cell.p50_ms", ".1f"),
    Column("p99\nms", "cell.p99_ms", ".1f"),
    Column("steps", "cell.steps_per_token", ".2f"),
    Column("wasted", "cell.thrown_away_per_token", ".2f"),
    Column("bytes\nup", "cell.bytes_up_per_token", ".0f"),
    Column("bytes\ndown", "cell.bytes_down_per_token", ".0f"),
    *(_hits(kind) for kind in HIT_KINDS),
)


def link_table(figures: LinkFigures) -> Table:
    """A section for each RTT, a row for each method, and a dash for what was not measured."""
    cells = {(cell.rtt_ms, cell.method): cell for cell in figures.cells}
    rows = [
        LinkRow(rtt, method, cells.get((rtt, method)))
        for rtt in figures.rtts_ms
        for method in figures.methods
    ]
    return table(
        f"{figures.pair}: methods by RTT",
        COLUMNS + energy_columns(rows, lambda row: row.cell and row.cell.energy),
        rows,
        section=lambda row: row.rtt_ms,
        caption=_caption(figures.machine),
    )


def _caption(machine: Machine) -> str:
    """Meaning of the columns, and the machine that was measured."""
    cores = f"{machine.cores} core(s)" if machine.cores else ""
    place = [machine.processor.model, *machine.gpus, cores, machine.system]
    return (
        "first: to the first token; p50, p99: between tokens; steps: of the target for each token; "
        "wasted: tokens\nverified and rejected for each token; bytes: for each token; "
        "full, branch, hint: verdicts that found a draft ready\n"
        + ", ".join(str(part) for part in place if part)
    )
