"""Step times on this machine, measured before the first device connects."""

from __future__ import annotations

import time
from collections.abc import Callable

from cloud_runtime.costs import Speeds, StepCosts
from edgespec.policies import SchedulerPolicy
from edgespec.sampling import Sampling
from engines.base import Engine, Row
from engines.drafters.base import Drafter, DraftRequest

PAST_TOKENS = 32
"""Cached positions of each session that is measured."""
SHAPES = ((1, 1), (1, 2), (1, 4), (1, 8), (2, 2), (2, 4), (4, 2), (4, 4), (8, 2))
"""Rows and width of the steps that decode and verify."""
CHUNKS = ((1, 32), (1, 64), (2, 32))
"""Rows and width of the steps over prompts."""
CLOUD_DRAFT_ROWS = (1, 2, 4)
CLOUD_DRAFT_TOKENS = (1, 8)
"""Tokens that a step of the cloud draft reads for each session."""
REPEATS = 3
CLOUD_DRAFT_GUESS_S = (0.003, 0.001, 0.0003, 0.0)
"""Fixed, row, token, position, before the first measurement."""


def measure(
    engine: Engine,
    drafter: Drafter | None,
    *,
    hints: bool,
    clock: Callable[[], float] = time.monotonic,
    policy: SchedulerPolicy = SchedulerPolicy(),
) -> Speeds:
    """Runs a few steps of each kind; leaves no session behind. `hints`: exit heads will run."""
    speeds = Speeds(
        StepCosts(min_tokens=engine.min_tokens, policy=policy),
        StepCosts(min_tokens=engine.min_tokens, policy=policy),
        policy=policy,
    )
    most = max(rows for rows, _ in SHAPES)
    slots = [engine.open() for _ in range(min(most, engine.slots))]
    longest = max(width for _, width in (*SHAPES, *CHUNKS))
    ids = [number % engine.vocabulary for number in range(3, 3 + PAST_TOKENS + longest)]

    def run(rows: int, width: int, choice_count: int, *, exits: bool = False) -> float:
        began = clock()
        tokens = ids[PAST_TOKENS:][:width]
        for _ in engine.run(
            [Row(slot, PAST_TOKENS, tokens, choice_count, exits) for slot in slots[:rows]]
        ):
            pass
        return clock() - began

    def learn(costs: StepCosts, rows: int, width: int, choice_count: int) -> None:
        if rows <= len(slots) and PAST_TOKENS + width <= engine.context:
            run(rows, width, choice_count)  # the first run allocates buffers
            for _ in range(REPEATS):
                costs.learn(rows, width, run(rows, width, choice_count), PAST_TOKENS * rows)

    try:
        for _ in engine.run([Row(slot, 0, ids[:PAST_TOKENS], 0) for slot in slots]):
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
            speeds.hints_s = max(0.0, sorted(a - b for a, b in pairs)[REPEATS // 2])
    finally:
        for slot in slots:
            engine.close(slot)
    if drafter is not None:
        speeds.cloud_draft = _measure_cloud_draft(drafter, ids[:PAST_TOKENS], clock, policy)
    return speeds


def _measure_cloud_draft(
    drafter: Drafter, prompt: list[int], clock: Callable[[], float], policy: SchedulerPolicy
) -> StepCosts:
    costs = StepCosts(CLOUD_DRAFT_GUESS_S, policy=policy)
    prefixes = [list(prompt) for _ in range(max(CLOUD_DRAFT_ROWS))]

    def step(count: int, width: int) -> float:
        """Seconds; 0 where the context is full, from which nothing is learned."""
        for prefix in prefixes[:count]:
            prefix += prompt[:width]
        began = clock()
        requests = [
            DraftRequest(n, prefix, Sampling()) for n, prefix in enumerate(prefixes[:count])
        ]
        guesses = drafter.guess(requests)
        return 0.0 if None in guesses else clock() - began

    step(len(prefixes), 1)
    for count in CLOUD_DRAFT_ROWS:
        for width in CLOUD_DRAFT_TOKENS:
            step(count, width)  # the first run allocates buffers
            for _ in range(REPEATS):
                costs.learn(count, width, step(count, width))
    drafter.retain(())
    costs.remember()
    return costs
