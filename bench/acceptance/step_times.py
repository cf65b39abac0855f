"""What one token costs either model, side by side in one run."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

from edgespec.sampling import Sampling
from engines.base import Engine, Row, final_choices
from engines.drafters.base import DraftRequest
from engines.drafters.ngram import NgramDrafter

PAST = 200
"""Cached positions; fewer where the context is shorter."""
REPEATS = 61

Step = Callable[[], object]


def decoding_step(engine: Engine) -> Step:
    """A step of one token that can be repeated: it always starts at the same position."""
    past = min(PAST, engine.context - 2)
    ids = [number % engine.vocabulary for number in range(100, 101 + past)]
    slot = engine.open()
    final_choices(engine, [Row(slot, 0, ids[:past], 0)])
    return lambda: final_choices(engine, [Row(slot, past, ids[past:])])


def lookup_step() -> Step:
    """A guess by prompt lookup, one token further along a text each time."""
    drafter, text = NgramDrafter(), [number % 50 for number in range(PAST)]

    def step() -> object:
        text.append(len(text) % 50)
        return drafter.guess([DraftRequest(0, text, Sampling())])

    step()  # the prompt is indexed once
    return step


def medians(steps: dict[str, Step]) -> dict[str, float]:
    """Milliseconds of each. They take turns, so that a machine that drifts slows them alike."""
    times: dict[str, list[float]] = {name: [] for name in steps}
    for turn in range(REPEATS + 1):
        for name, step in steps.items():
            before = time.perf_counter()
            step()
            if turn:  # the first one warms up
                times[name].append((time.perf_counter() - before) * 1e3)
    return {name: statistics.median(taken) for name, taken in times.items()}
