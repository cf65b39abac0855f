"""Times of engine steps that start at the same position each time."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping

from edgespec.progress import Advance
from engines.base import Engine, Row, final_choices

PAST_TOKENS = 200
"""Cached positions of every row; fewer if the context is shorter."""

BUSY_LOAD = 0.5
"""Load average of the last minute above which other programs disturb a measurement."""

Step = Callable[[], object]


class RepeatedStep:
    """One batch of an engine, in slots of its own, that can be run any number of times."""

    def __init__(
        self, engine: Engine, rows: int = 1, tokens: int = 1, past_tokens: int = PAST_TOKENS
    ) -> None:
        """Opens `rows` slots and prefills them. A step runs `tokens` tokens of each, with choices
        after every one."""
        self._engine = engine
        past = min(past_tokens, engine.context - max(tokens, engine.min_tokens))
        ids = [number % engine.vocabulary for number in range(100, 100 + past + tokens)]
        self._slots = [engine.open() for _ in range(rows)]
        for slot in self._slots:
            final_choices(engine, [Row(slot, 0, ids[:past], 0)])
        self._batch = [Row(slot, past, ids[past:], tokens) for slot in self._slots]

    def __call__(self) -> object:
        return final_choices(self._engine, self._batch)

    def close(self) -> None:
        """Closes the slots."""
        while self._slots:
            self._engine.close(self._slots.pop())


def times_ms(
    steps: Mapping[str, Step], repeats: int, advance: Advance | None = None
) -> dict[str, list[float]]:
    """Returns `repeats` times of each step in milliseconds, after one run that warms up.

    The steps take turns, so that a machine whose speed drifts slows them alike. `advance(1)` is
    called after each turn.
    """
    times: dict[str, list[float]] = {name: [] for name in steps}
    for turn in range(repeats + 1):
        for name, step in steps.items():
            before = time.perf_counter()
            step()
            if turn:
                times[name].append((time.perf_counter() - before) * 1e3)
        if advance is not None:
            advance(1)
    return times


def medians_ms(
    steps: Mapping[str, Step], repeats: int, advance: Advance | None = None
) -> dict[str, float]:
    """Returns the median time of each step in milliseconds, as `times_ms` measures them."""
    times = times_ms(steps, repeats, advance)
    return {name: statistics.median(taken) for name, taken in times.items()}


def shortest_ms(step: Step, repeats: int) -> float:
    """Returns the shortest time of a step in milliseconds: other load on the machine only adds."""
    return min(times_ms({"step": step}, repeats)["step"])
