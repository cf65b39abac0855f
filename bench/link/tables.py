"""The table of methods over links of different round-trip times."""

from __future__ import annotations

from typing import Any

from rich import box
from rich.table import Table

from bench.lab.energy import each_token

COLUMNS = (
    ("tokens\n/s", "tokens_per_s", ".1f"),
    ("ratio\ncloud", "ratio_to_cloud", ".2f"),
    ("first\nms", "first_token_ms", ".0f"),
    ("p50\nms", "p50_ms", ".1f"),
    ("p99\nms", "p99_ms", ".1f"),
    ("steps", "steps_per_token", ".2f"),
    ("wasted", "thrown_away_per_token", ".2f"),
    ("bytes\nup", "bytes_up_per_token", ".0f"),
    ("bytes\ndown", "bytes_down_per_token", ".0f"),
)
HITS = ("full", "branch", "hint")


def link_table(figures: dict[str, Any]) -> Table:
    """A section an RTT, a row a method; a dash where a method was not run or has no such figure."""
    table = Table(
        title=f"{figures['pair']}: methods by RTT",
        box=box.SIMPLE,
        padding=(0, 1, 0, 0),
        caption=_caption(figures["machine"]),
    )
    table.add_column("RTT\nms", justify="right", no_wrap=True)
    table.add_column("method", no_wrap=True)
    for header, _, _ in COLUMNS:
        table.add_column(header, justify="right", no_wrap=True)
    for name in HITS:
        table.add_column(f"{name}\n%", justify="right", no_wrap=True)
    measured = any("energy" in cell for cell in figures["cells"])
    if measured:
        table.add_column("J a\ntoken", justify="right")
    cells = {(cell["rtt_ms"], cell["method"]): cell for cell in figures["cells"]}
    for rtt in figures["rtts_ms"]:
        for number, method in enumerate(figures["methods"]):
            cell = cells.get((rtt, method), {})
            taken = [each_token(cell.get("energy"))] if measured else []
            table.add_row("" if number else f"{rtt:g}", method, *_row(cell), *taken)
        table.add_section()
    return table


def _row(cell: dict[str, Any]) -> list[str]:
    hits = cell.get("hits") or {}
    shares = [hits.get(name) for name in HITS]
    return [
        *(_number(cell.get(name), form) for _, name, form in COLUMNS),
        *(_number(None if share is None else 100 * share, ".0f") for share in shares),
    ]


def _number(value: float | None, form: str) -> str:
    return "–" if value is None else format(value, form)


def _caption(machine: dict[str, Any]) -> str:
    """What the columns are, and where they were measured."""
    processor = machine.get("processor") or {}
    said = [
        processor.get("model") if isinstance(processor, dict) else processor,
        *(machine.get("gpus") or ()),
    ]
    cores = machine.get("cores")
    said += [f"{cores} core(s)" if cores else None, machine.get("system")]
    return (
        "first: to the first token; p50, p99: between tokens; full, branch, hint: rounds that hit\n"
        "a token: steps of the target, tokens verified and thrown away (wasted), bytes\n"
        + ", ".join(str(part) for part in said if part)
    )
