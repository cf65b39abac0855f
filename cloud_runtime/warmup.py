"""What steps cost here, measured before the first device comes."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

from cloud_runtime.service import Speeds
from edgespec.sampling import Sampling
from engines.base import Engine, Row
from engines.drafting import Drafter

PAST = 32
"""Cached positions of the session that is measured on."""
TOKENS = (1, 2, 4, 8)
REPEATS = 3


def measure(engine: Engine, drafter: Drafter | None, *, hints: bool) -> Speeds:
    """Runs some steps of each kind; leaves no session behind."""
    speeds = Speeds()
    slot = engine.open()
    try:
        ids = [number % engine.vocabulary for number in range(3, 3 + PAST + max(TOKENS))]
        for _ in engine.run([Row(slot, 0, ids[:PAST], 0)]):
            pass

        def step(tokens: int, *, exits: bool = False) -> float:
            began = time.monotonic()
            for _ in engine.run([Row(slot, PAST, ids[PAST:][:tokens], tokens, exits)]):
                pass
            return time.monotonic() - began

        step(max(TOKENS), exits=hints)  # the first one makes buffers
        for _ in range(REPEATS):
            for tokens in TOKENS:
                speeds.costs.learn(1, tokens, step(tokens))
        speeds.costs.remember()
        if hints:
            with_exits = _median(lambda: step(4, exits=True))
            speeds.hints = max(0.0, with_exits - _median(lambda: step(4)))
    finally:
        engine.close(slot)
    if drafter is not None:
        text = ids[:PAST]

        def draft() -> float:
            began = time.monotonic()
            (guess,) = drafter.guess([text], Sampling())
            if guess is not None:
                text.append(guess.token)
            return time.monotonic() - began

        draft()
        speeds.beside = speeds.beside_alone = max(_median(draft), 1e-6)
        drafter.reset()
    return speeds


def _median(measured: Callable[[], float]) -> float:
    return statistics.median(measured() for _ in range(REPEATS))
