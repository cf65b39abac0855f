"""Tables of crowds: a row an offender, then what a crowd costs."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from rich.table import Table

from bench.crowd.figures import ALLOWED_ERROR, ALLOWED_LOSS, ALLOWED_SHARE
from bench.fleet.figures import BUSY
from bench.plan.tables import plain_table

COLUMNS = (
    ("alone\ntokens/s", "rate_alone", ".2f"),
    ("beside\ntokens/s", "rate_beside", ".2f"),
    ("ratio", "ratio", ".3f"),
    ("p99 gap\nalone ms", "p99_alone_ms", ".0f"),
    ("beside\nms", "p99_beside_ms", ".0f"),
    ("cloud MB\nbefore", "memory_before_mb", ".0f"),
    ("\nbeside", "memory_beside_mb", ".0f"),
    ("\nafter", "memory_after_mb", ".0f"),
)
"""Headers, names of figures, and how to write them."""


def crowd_tables(figures: dict[str, Any]) -> Iterator[Table]:
    """One for each part that was measured."""
    if "offenders" in figures:
        yield _offenders(figures)
    if "overhead" in figures:
        yield _overhead(figures)
    if "churn" in figures:
        yield _churn(figures)
    if "model" in figures:
        yield _model(figures)


def _offenders(figures: dict[str, Any]) -> Table:
    greedy = figures["greedy_ratio_to_one_more"]
    table = plain_table(
        f"{figures['polite']} polite devices ({figures['profile']}), and one more beside them",
        f"tokens/s: of a polite device, on average; they may lose {ALLOWED_LOSS:.0%}\n"
        f"beside the greedy one they have {greedy:.3f} of what they have beside one more of them\n"
        f"!: the load generator was too busy to be trusted",
    )
    table.add_column("beside", no_wrap=True)
    for header, *_ in COLUMNS:
        table.add_column(header, justify="right", no_wrap=True)
    table.add_column("the cloud's line", overflow="fold")
    for row in figures["offenders"]:
        said = row["said"]["message"] if row["said"] else ""
        name = row["name"] + ("" if row["trusted"] else " !")
        cells = [format(row[key], form) for _, key, form in COLUMNS]
        table.add_row(name, *cells, said if len(said) <= 100 else f"{said[:99]}…")
    return table


def _overhead(figures: dict[str, Any]) -> Table:
    cost = figures["overhead"]
    busy = "" if cost["trusted"] else f" (over {BUSY:.0%} or late: not to be trusted)"
    table = plain_table(
        f"{cost['connected']} sessions, {cost['active']} of them active",
        f"of a step of {cost['run_ms']:.1f} ms and {cost['rows']:.1f} sessions; allowed are "
        f"{ALLOWED_SHARE:.0%}\nthe load generator used {cost['generator']:.0%} of its core{busy}",
    )
    table.add_column("the cloud's loop")
    table.add_column("ms a step", justify="right")
    table.add_column("of a step", justify="right")
    for name in ("receive", "decide", "answer"):
        table.add_row(name, f"{cost[f'{name}_ms']:.2f}", f"{cost[f'{name}_share']:.2%}")
    table.add_row("together", "", f"{cost['share']:.2%}")
    table.add_section()
    length = cost["length"]
    kv, record = figures["session_kv_bytes"], figures["session_record_bytes"]
    table.add_row(f"KV cache of a session of {length} tokens", f"{kv / 1e6:.2f} MB")
    table.add_row(f"record of an idle session of {length} tokens", f"{record / 1e3:.1f} kB")
    return table


def _churn(figures: dict[str, Any]) -> Table:
    table = plain_table(
        "short sessions, one after the other",
        f"{figures['churn']['connections']} connections in {figures['churn']['seconds']:.0f} s; "
        f"growth between the rows: {figures['growth_bytes_per_session']:.0f} bytes a session",
    )
    for header in ("sessions", "cloud MB", "objects", "open", "devices remembered"):
        table.add_column(header, justify="right")
    for mark in figures["churn"]["marks"]:
        table.add_row(
            str(mark["sessions"]), f"{mark['memory_mb']:.1f}", str(mark["objects"]),
            str(mark["open_sessions"]), str(mark["devices"]),
        )  # fmt: skip
    return table


def _model(figures: dict[str, Any]) -> Table:
    table = plain_table(
        "predicted times of steps",
        f"median error of the last 200; allowed are {ALLOWED_ERROR:.0%}",
    )
    for header in ("devices", "steps so far", "decoding and verifying", "prompts"):
        table.add_column(header, justify="right")
    for phase in figures["model"]:
        table.add_row(
            str(phase["devices"]), f"{phase['steps']:.0f}", f"{phase['error']:.1%}",
            f"{phase['prompt_error']:.1%}",
        )  # fmt: skip
    return table
