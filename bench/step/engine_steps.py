"""Steps of an engine, timed in blocks of consecutive steps."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import NamedTuple

from bench.step.sessions import SessionClock
from bench.step.settings import Plan, Role, StepShape
from engines.base import Engine, Row, final_choices

FIRST_ID = 100
"""First token id of every row; a step's time does not depend on the ids."""


class BlockTime(NamedTuple):
    """Means of a block, in milliseconds a step: llama.cpp's times are means of a run too."""

    ms: float
    python_ms: float
    """The part outside of ONNX Runtime's calls."""


class EngineSteps:
    """Steps of any shape over slots that all shapes share."""

    def __init__(self, engine: Engine, role: Role, plan: Plan) -> None:
        """Opens slots for the plan's largest batch, which hold one text of the prompt's length, as
        the branches of an answer do. Every step begins by lowering a cached length."""
        self._engine, self._role = engine, role
        self._slots = [engine.open() for _ in range(max(plan.rows))]
        longest = max(plan.prompt_tokens, max(shape.past_tokens for shape in plan.shapes))
        first, *others = self._slots
        final_choices(engine, [Row(first, 0, self._ids(longest), 0)])
        for slot in others:
            engine.copy(first, slot, 0, longest)

    def step(self, shape: StepShape) -> Callable[[], object]:
        """A step that can be run any number of times.

        A target computes choices after every token, to verify a draft. A draft, and every prompt,
        computes them after the last token of a row.
        """
        every = self._role == "target" and shape.past_tokens > 0
        choice_count = shape.tokens if every else 1
        ids = self._ids(shape.tokens)
        slots = self._slots[: shape.rows]
        batch = [Row(slot, shape.past_tokens, ids, choice_count) for slot in slots]
        return lambda: final_choices(self._engine, batch)

    def block(self, shape: StepShape, steps: int, clock: SessionClock) -> BlockTime:
        """Means of `steps` consecutive steps, after one that warms up."""
        step = self.step(shape)
        step()
        times = [_timed(step, clock) for _ in range(steps)]
        return BlockTime(*(statistics.fmean(each) for each in zip(*times, strict=True)))

    def _ids(self, count: int) -> list[int]:
        return [(FIRST_ID + number) % self._engine.vocabulary for number in range(count)]


def _timed(step: Callable[[], object], clock: SessionClock) -> BlockTime:
    inside_s, before = clock.seconds, time.perf_counter()
    step()
    taken_s = time.perf_counter() - before
    return BlockTime(taken_s * 1e3, (taken_s - (clock.seconds - inside_s)) * 1e3)
