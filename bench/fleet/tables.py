"""Tables of fleets: what each method did with so many devices, and how many it can serve."""

from __future__ import annotations

from typing import Any

from rich.table import Table

from bench.fleet.figures import BUSY, LATE, STOLEN
from bench.lab.energy import each_token
from bench.plan.tables import plain_table

COLUMNS = (
    ("met\n%", 100, ".0f", ("share_met",)),
    ("goodput\ntokens/s", 1, ".0f", ("goodput",)),
    ("all\ntokens/s", 1, ".0f", ("tokens_per_s",)),
    ("first ms\np50/p95", 1, ".0f", ("first_token_ms", "first_token_p95_ms")),
    ("gaps ms\np50/p99", 1, ".0f", ("p50_ms", "p99_ms")),
    ("steps\n/token", 1, ".2f", ("steps_per_token",)),
    ("rows\np50/p95", 1, ".0f", ("rows_p50", "rows_p95")),
    ("step\nms", 1, ".0f", ("step_ms",)),
    ("bytes\nup/down", 1, ".0f", ("bytes_up_per_token", "bytes_down_per_token")),
    ("cloud\nMB", 1, ".0f", ("memory_mb",)),
    ("cloud\nbusy %", 100, ".0f", ("cloud_busy",)),
    ("bench\nbusy %", 100, ".0f", ("generator",)),
)
"""Headers, what to multiply figures by, how to write them, and their names."""


def fleet_table(figures: dict[str, Any]) -> Table:
    """A section a fleet size, a row a method, and one for the real devices beside it."""
    table = plain_table(
        f"{figures['profile']}, each promised {figures['target_rate']:g} tokens/s",
        "met: devices that got it; goodput: tokens of those; first: to the first token; gaps: "
        "between tokens\nsteps: of the target, for one session; rows: sessions of a step; bytes: "
        "a token\nbusy: of their core; bench: the devices; !: not to be trusted, see below",
    )
    table.add_column("devices", justify="right", no_wrap=True)
    table.add_column("method", no_wrap=True)
    for header, *_ in COLUMNS:
        table.add_column(header, justify="right", no_wrap=True)
    cells = figures["cells"]
    measured = any("energy" in cell for cell in cells)
    if measured:
        table.add_column("J a\ntoken", justify="right", no_wrap=True)
    order = figures["methods"].index
    for devices in sorted({cell["devices"] for cell in cells}):
        here = [cell for cell in cells if cell["devices"] == devices]
        for number, cell in enumerate(sorted(here, key=lambda each: order(each["method"]))):
            mark = "" if cell["trusted"] else " !"
            taken = [each_token(cell.get("energy"))] if measured else []
            name = cell["method"] + mark
            table.add_row("" if number else str(devices), name, *_row(cell), *taken)
            if "real" in cell:
                real = cell["real"]
                table.add_row("", f"… {real['devices']} real beside", *_row(real))
        table.add_section()
    return table


def capacity_table(figures: dict[str, Any]) -> Table:
    """A row a method: the largest fleet that was served, the next one that was not, and how many
    times as many devices ours serves."""
    table = plain_table("capacity: devices, 95 % of which get what they were promised")
    for header in ("method", "serves", "not any more", "edgespec to it"):
        table.add_column(header, justify="left" if header == "method" else "right", no_wrap=True)
    capacity, fails = figures["capacity"], figures["fails"]
    ours = capacity.get("edgespec")
    for name in figures["methods"]:
        serves = capacity[name]
        table.add_row(
            name,
            str(serves) if fails[name] else f"{serves} or more",
            str(fails[name] or "–"),
            f"{ours / serves:.2f}" if ours is not None and serves else "–",
        )
    return table


def fleet_notes(figures: dict[str, Any]) -> str:
    """How far the figures can be believed, and where the search is not finished."""
    cells = figures["cells"]
    notes = []
    if cells:
        busiest = max(cells, key=lambda cell: cell["generator"])
        latest = max(cells, key=lambda cell: cell["late_p95_ms"])
        notes.append(
            f"The load generator used at most {busiest['generator']:.0%} of its core "
            f"({busiest['method']}, {busiest['devices']} devices); of its sleeps 95 % ended at "
            f"most {latest['late_p95_ms']:.1f} ms late, half of them {latest['late_p50_ms']:.1f} "
            f"({latest['method']}, {latest['devices']} devices)."
        )
    busy = [c for c in cells if c["generator"] > BUSY or c["late_p95_ms"] > 1e3 * LATE]
    if busy:
        notes.append(
            f"It was too busy (over {BUSY:.0%}, or {1e3 * LATE:g} ms late) to be trusted for: "
            f"{_names(busy)}."
        )
    disturbed = [c for c in cells if c["stolen"] > STOLEN]
    if disturbed:
        notes.append(
            f"Others computed on the cloud's core for more than {STOLEN:.0%} of the time; measure "
            f"again on a quiet machine: {_names(disturbed)}."
        )
    open_ = [name for name in figures["methods"] if not figures["confirmed"][name]]
    if open_:
        notes.append(f"Not narrowed down to neighbouring fleets: {', '.join(open_)}.")
    return "\n".join(notes)


def _names(cells: list[dict[str, Any]]) -> str:
    return ", ".join(f"{cell['method']} with {cell['devices']} devices" for cell in cells)


def _row(cell: dict[str, Any]) -> list[str]:
    return [
        "/".join(_number(cell.get(name), factor, form) for name in names)
        for _, factor, form, names in COLUMNS
    ]


def _number(value: float | None, factor: float, form: str) -> str:
    return "–" if value is None else format(factor * value, form)
