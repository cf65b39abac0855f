"""Tables of simulated fleets."""

from __future__ import annotations

from typing import Any

from rich.table import Table

from bench.plan.tables import WIDTH, plain_table

NOTE = (
    "served: has its rate and waits at most {:g} s for an answer to begin. "
    "devices: the largest fleet of which 95 % are served; +: nobody looked further."
)


def capacity_table(figures: dict[str, Any]) -> Table:
    """A row a rate: how many devices each method serves at it."""
    table = plain_table(figures["name"], min_width=WIDTH)
    table.add_column("tokens/s\neach", justify="right", no_wrap=True)
    names = list(next(iter(figures["rates"].values())))
    for name in names:
        table.add_column(f"{_wrapped(name)}\ndevices", justify="right", no_wrap=True)
    for rate, methods in figures["rates"].items():
        said = [f"{methods[n]['capacity']}{'+' if methods[n]['more'] else ''}" for n in names]
        table.add_row(rate, *said)
    return table


def fleet_table(figures: dict[str, Any], rate: str) -> Table:
    """A row a fleet and method, at one rate."""
    table = plain_table(f"{figures['name']}, {rate} tokens/s each", min_width=WIDTH)
    for header in (
        "devices", "method", "served\n%", "tokens/s\nmean", "\np5", "first\np95 ms",
        "busy %\ntarget", "\ndraft", "\nmessages", "rows\na step",
    ):  # fmt: skip
        table.add_column(header, justify="left" if header == "method" else "right", no_wrap=True)
    fleets = [(f, name) for name, each in figures["rates"][rate].items() for f in each["fleets"]]
    before = None
    for f, name in sorted(fleets, key=lambda pair: int(pair[0]["devices"])):
        new, before = f["devices"] != before, f["devices"]
        table.add_row(
            str(f["devices"]) if new else "", name, f"{100 * f['served']:.0f}",
            f"{f['tokens_per_s']:.1f}", f"{f['p5_tokens_per_s']:.1f}",
            f"{f['p95_first_token_ms']:.0f}", f"{100 * f['busy']:.0f}",
            f"{100 * f['drafting']:.0f}", f"{100 * f['handling']:.0f}", f"{f['rows']:.1f}",
        )  # fmt: skip
    return table


def _wrapped(name: str) -> str:
    return name.replace("lockstep one", "lockstep\none")
