"""Cost of exactness: step times of a back end in its exact and in its fast form."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from typing import NamedTuple

from edgespec.manifest import Bundle
from engines.backends import FASTER, open_target
from engines.base import Engine
from engines.step_times import RepeatedStep, shortest_ms

REPEAT_COUNT = 9
STEPS: Mapping[str, tuple[int, int]] = {
    "one token": (1, 1),
    **{f"verify of 5 in {rows} row{'s' * (rows > 1)}": (rows, 5) for rows in (1, 4, 16)},
}
"""Timed steps: name to (rows, tokens of each row)."""


class Price(NamedTuple):
    """Times of one step, exact and fast."""

    name: str
    exact_ms: float
    fast_ms: float

    @property
    def ratio(self) -> float:
        return self.exact_ms / self.fast_ms


def step_times(engine: Engine, steps: Mapping[str, tuple[int, int]]) -> dict[str, float]:
    """Returns milliseconds of each step, the shortest of several runs (other load only adds)."""
    times = {}
    for name, (rows, tokens) in steps.items():
        with closing(RepeatedStep(engine, rows, tokens)) as step:
            times[name] = shortest_ms(step, REPEAT_COUNT)
    return times


def price(exact: Callable[[], Engine], fast: Callable[[], Engine]) -> list[Price]:
    """Times both engines, one after the other, so that only one is in memory at a time."""
    exact_ms, fast_ms = step_times(exact(), STEPS), step_times(fast(), STEPS)
    return [Price(name, exact_ms[name], fast_ms[name]) for name in STEPS]


def price_of(bundle: Bundle, backend: str, threads: int) -> list[Price]:
    """Times a back end of `FASTER` against its fast form."""
    return price(
        lambda: open_target(bundle, backend, threads),
        lambda: open_target(bundle, FASTER[backend], threads),
    )


def report_prices(prices: Sequence[Price], backend: str) -> str:
    lines = [f"cost of exactness, {backend} against {FASTER[backend]}:"]
    lines += [
        f"{price.ratio:>16.2f}  {price.name} ({price.exact_ms:.1f} ms, not {price.fast_ms:.1f})"
        for price in prices
    ]
    return "\n".join(lines)
