"""Tables of simulated fleets."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from rich.table import Table

from bench.lab.tables import MIN_WIDTH_COLUMNS, Column, table
from bench.plan.figures import FleetFigures, MethodFleets, ProfileFleets

NOTE = (
    "served: reaches the target rate and waits at most {:g} s for an answer's first token. "
    "devices: the largest fleet of which 95 % are served; +: no larger fleet was tried."
)


class _Capacities(NamedTuple):
    rate: str
    methods: dict[str, MethodFleets]


class _Fleet(NamedTuple):
    method: str
    figures: FleetFigures


FLEET_COLUMNS = (
    Column("devices", "figures.devices", once=True),
    Column("method", "method", left=True),
    Column("served\n%", "figures.served", ".0f", scale=100),
    Column("tokens/s\nmean", "figures.tokens_per_s", ".1f"),
    Column("\np5", "figures.p5_tokens_per_s", ".1f"),
    Column("first\np95 ms", "figures.p95_first_token_ms", ".0f"),
    Column("busy %\ntarget", "figures.busy", ".0f", scale=100),
    Column("\ndraft", "figures.drafting", ".0f", scale=100),
    Column("\nmessages", "figures.handling", ".0f", scale=100),
    Column("rows\na step", "figures.rows", ".1f"),
)


def capacity_table(profile: ProfileFleets) -> Table:
    """One row for each target rate: the number of devices that each method serves at it."""
    rows = [_Capacities(rate, methods) for rate, methods in profile.rates.items()]
    columns = [
        Column("tokens/s\neach", "rate"),
        *(Column(f"{_wrapped(name)}\ndevices", _capacity(name)) for name in rows[0].methods),
    ]
    return table(profile.name, columns, rows, min_width=MIN_WIDTH_COLUMNS)


def fleet_table(profile: ProfileFleets, rate: str) -> Table:
    """One row for each fleet and method, at one target rate."""
    fleets = [
        _Fleet(method, figures)
        for method, each in profile.rates[rate].items()
        for figures in each.fleets
    ]
    fleets.sort(key=lambda fleet: fleet.figures.devices)
    title = f"{profile.name}, {rate} tokens/s each"
    return table(title, FLEET_COLUMNS, fleets, min_width=MIN_WIDTH_COLUMNS)


def _capacity(method: str) -> Callable[[_Capacities], str]:
    def text(row: _Capacities) -> str:
        fleets = row.methods[method]
        return f"{fleets.capacity}{'+' if fleets.more else ''}"

    return text


def _wrapped(name: str) -> str:
    return name.replace("lockstep one", "lockstep\none")
