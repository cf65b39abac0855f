"""What steps cost here, measured before the first device comes."""

from __future__ import annotations

import time
from collections.abc import Callable

from cloud_runtime.costs import Speeds, StepCosts
from edgespec.sampling import Sampling
from engines.base import Engine, Row
from engines.drafters.base import Drafter, DraftRequest

PAST = 32
"""Cached positions of the sessions that are measured on."""
SHAPES = ((1, 1), (1, 2), (1, 4), (1, 8), (2, 2), (2, 4), (4, 2), (4, 4), (8, 2))
"""Rows and width of the steps."""
CHUNKS = ((1, 32), (1, 64), (2, 32))
TEXTS = (1, 2, 4)
"""Of a step of the draft beside the target."""
WIDTHS = (1, 8)
"""Tokens that it reads of each."""
REPEATS = 3
BESIDE = (0.003, 0.001, 0.0003, 0.0)
"""Seconds, before the first measurement."""


def measure(
    engine: Engine,
    drafter: Drafter | None,
    *,
    hints: bool,
    clock: Callable[[], float] = time.monotonic,
) -> Speeds:
    """Runs some steps of each kind; leaves no session behind."""
    speeds = Speeds(StepCosts(least=engine.min_tokens), StepCosts(least=engine.min_tokens))
    most = max(rows for rows, _ in SHAPES)
    slots = [engine.open() for _ in range(min(most, engine.slots))]
    longest = max(width for _, width in (*SHAPES, *CHUNKS))
    ids = [number % engine.vocabulary for number in range(3, 3 + PAST + longest)]

    def run(rows: int, width: int, wanted: int, *, exits: bool = False) -> float:
        began = clock()
        tokens = ids[PAST:][:width]
        for _ in engine.run([Row(slot, PAST, tokens, wanted, exits) for slot in slots[:rows]]):
            pass
        return clock() - began

    def learn(costs: StepCosts, rows: int, width: int, wanted: int) -> None:
        if rows <= len(slots) and PAST + width <= engine.context:
            run(rows, width, wanted)  # the first one makes buffers
            for _ in range(REPEATS):
                costs.learn(rows, width, run(rows, width, wanted), PAST * rows)

    try:
        for _ in engine.run([Row(slot, 0, ids[:PAST], 0) for slot in slots]):
            pass
        for rows, width in SHAPES:
            learn(speeds.costs, rows, width, width)
        for rows, width in CHUNKS:
            learn(speeds.chunks, rows, width, 0)
        speeds.costs.remember()
        speeds.chunks.remember()
        if hints:
            run(1, 4, 4, exits=True)
            pairs = [(run(1, 4, 4, exits=True), run(1, 4, 4)) for _ in range(REPEATS)]
            speeds.hints = max(0.0, sorted(a - b for a, b in pairs)[REPEATS // 2])
    finally:
        for slot in slots:
            engine.close(slot)
    if drafter is not None:
        speeds.cloud_draft = _cloud_draft(drafter, ids[:PAST], clock)
    return speeds


def _cloud_draft(drafter: Drafter, prompt: list[int], clock: Callable[[], float]) -> StepCosts:
    costs = StepCosts(BESIDE)
    texts = [list(prompt) for _ in range(max(TEXTS))]

    def step(count: int, width: int) -> float:
        """Seconds; 0 where the context is full, from which nothing is learnt."""
        for text in texts[:count]:
            text += prompt[:width]
        began = clock()
        guesses = drafter.guess(
            [DraftRequest(n, text, Sampling()) for n, text in enumerate(texts[:count])]
        )
        return 0.0 if None in guesses else clock() - began

    step(len(texts), 1)
    for count in TEXTS:
        for width in WIDTHS:
            step(count, width)  # the first one makes buffers
            for _ in range(REPEATS):
                costs.learn(count, width, step(count, width))
    drafter.retain(())
    costs.remember()
    return costs
