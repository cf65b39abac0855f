"""Tables of crowds: a row for each offender, then what a crowd costs the cloud."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from rich.table import Table

from bench.crowd.figures import (
    LOOP_ACTIVITIES,
    MAX_ERROR_RATIO,
    MAX_LOSS_RATIO,
    MAX_OVERHEAD_RATIO,
    ChurnPart,
    CrowdFigures,
    ModelPart,
    Offence,
    OffendersPart,
    OverheadPart,
)
from bench.fleet.figures import MAX_GENERATOR_RATIO
from bench.lab.tables import Column, table

LOG_CHARACTERS = 100


def crowd_tables(figures: CrowdFigures) -> Iterator[Table]:
    """One table for each part that was measured."""
    if figures.offenders:
        yield _offenders(figures.offenders, figures.profile)
    if figures.overhead:
        yield _overhead(figures.overhead)
    if figures.churn:
        yield _churn(figures.churn)
    if figures.model:
        yield _model(figures.model)


OFFENCE_COLUMNS = (
    Column("with", lambda row: row.name + ("" if row.reliable else " !"), left=True),
    Column("alone\ntokens/s", "rate_alone", ".2f"),
    Column("with it\ntokens/s", "rate_with_offender", ".2f"),
    Column("ratio", "ratio", ".3f"),
    Column("p99 gap\nalone ms", "p99_alone_ms", ".0f"),
    Column("with it\nms", "p99_with_offender_ms", ".0f"),
    Column("cloud MB\nbefore", "memory_before_mb", ".0f"),
    Column("\nwith it", "memory_with_offender_mb", ".0f"),
    Column("\nafter", "memory_after_mb", ".0f"),
    Column("the cloud's log", lambda row: _logged(row), left=True, fold=True),
)


def _logged(offence: Offence) -> str:
    message = str(offence.log_entry["message"]) if offence.log_entry else ""
    return message if len(message) <= LOG_CHARACTERS else f"{message[: LOG_CHARACTERS - 1]}…"


def _offenders(part: OffendersPart, profile: str) -> Table:
    greedy = part.greedy_ratio_to_one_more
    return table(
        f"{part.polite} polite devices ({profile}), and one more device",
        OFFENCE_COLUMNS,
        part.offenders,
        caption=f"tokens/s: of a polite device, on average; they may lose {MAX_LOSS_RATIO:.0%}\n"
        f"next to the greedy device they have {greedy or 0:.3f} of their rate next to one more "
        "polite device\n!: unreliable, the load generator was too busy",
    )


class OverheadRow(NamedTuple):
    what: str
    cost: str
    share: str


def _overhead(part: OverheadPart) -> Table:
    cost = part.overhead
    busy = "" if cost.reliable else f" (over {MAX_GENERATOR_RATIO:.0%} or late: unreliable)"
    rows = [
        OverheadRow(
            name, f"{getattr(cost, f'{name}_ms'):.2f}", f"{getattr(cost, f'{name}_share'):.2%}"
        )
        for name in LOOP_ACTIVITIES
    ]
    length = cost.length
    memory = [
        OverheadRow(
            f"KV cache of a session of {length} tokens", f"{part.session_kv_bytes / 1e6:.2f} MB", ""
        ),
        OverheadRow(
            f"record of an idle session of {length} tokens",
            f"{part.session_record_bytes / 1e3:.1f} kB",
            "",
        ),
    ]
    return table(
        f"{cost.connected} sessions, {cost.active} of them active",
        (
            Column("the cloud's loop", "what", left=True),
            Column("ms a step", "cost"),
            Column("of a step", "share"),
        ),
        [*rows, OverheadRow("together", "", f"{cost.share:.2%}"), *memory],
        section=lambda row: row in memory,
        caption=f"of a step of {cost.run_ms:.1f} ms and {cost.rows:.1f} sessions; allowed are "
        f"{MAX_OVERHEAD_RATIO:.0%}\nthe load generator used {cost.generator:.0%} of its core{busy}",
    )


def _churn(part: ChurnPart) -> Table:
    return table(
        "short sessions, one after the other",
        (
            Column("sessions", "sessions"),
            Column("cloud MB", "memory_mb", ".1f"),
            Column("objects", "objects"),
            Column("open", "open_sessions"),
            Column("devices remembered", "devices"),
        ),
        part.churn.marks,
        caption=f"{part.churn.connections} connections in {part.churn.seconds:.0f} s; growth "
        f"between the rows: {part.growth_bytes_per_session:.0f} bytes a session",
    )


def _model(part: ModelPart) -> Table:
    return table(
        "predicted times of steps",
        (
            Column("devices", "devices"),
            Column("steps so far", "steps", ".0f"),
            Column("decoding and verifying", "error", ".1%"),
            Column("prompts", "prompt_error", ".1%"),
        ),
        part.model,
        caption=f"median error of the last 200; allowed are {MAX_ERROR_RATIO:.0%}",
    )
