"""Measurement of one model: a role, a precision and a number of threads."""

from __future__ import annotations

import statistics
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

from bench.step.engine_steps import BlockTime, EngineSteps
from bench.step.figures import LoadedModel, TimedStep
from bench.step.llama import LlamaPrograms, LlamaTest
from bench.step.models import cache_bytes, profile_of, weight_bytes
from bench.step.sessions import SessionClock, session_clock, session_profiles
from bench.step.settings import Plan, Precision, Role, StepShape
from edgespec.manifest import Bundle
from edgespec.progress import Advance
from engines.backends import DEFAULT, open_draft, open_target
from engines.base import Engine, Row, final_choices

SHORT_PROMPT = tuple(range(8))
"""Token ids before the first step of a slot."""


class LlamaModel(NamedTuple):
    programs: LlamaPrograms
    path: Path
    """GGUF file."""


class MeasuredModel(NamedTuple):
    model: LoadedModel
    steps: list[TimedStep]
    llama: LlamaTest | None
    """One of llama.cpp's tests; None if it was not measured."""


class Measurement:
    """Measures the steps of one model."""

    def __init__(
        self, bundle: Bundle, role: Role, precision: Precision, threads: int, plan: Plan
    ) -> None:
        self._bundle, self._plan = bundle, plan
        self._role, self._precision, self._threads = role, precision, threads

    def run(
        self, llama: LlamaModel | None, bandwidth_gb_s: float, advance: Advance
    ) -> MeasuredModel:
        """Measures all steps of the plan, in turns with llama.cpp if it is given.

        `bandwidth_gb_s` is the speed at which as many threads read memory. `advance(1)` is called
        after each turn.
        """
        operators = self._operators()
        with session_clock() as clock:
            before = time.perf_counter()
            engine = self._engine()
            load_s = time.perf_counter() - before
            model = LoadedModel(
                role=self._role,
                precision=self._precision,
                threads=self._threads,
                nodes=sum(operators.values()),
                operators=operators,
                weights_mb=round(self._weight_bytes / 1e6, 2),
                load_s=round(load_s, 3),
                first_step_ms=round(_first_step_ms(engine), 3),
            )
            turns, tests = self._turns(engine, llama, clock, advance)
        steps = [self._step(s, turns, tests, bandwidth_gb_s) for s in self._plan.shapes]
        return MeasuredModel(model, steps, tests[0][0] if tests else None)

    def _engine(self) -> Engine:
        if self._role == "target":
            return open_target(self._bundle, DEFAULT, self._threads)
        profile, slots = profile_of(self._role, self._precision), max(self._plan.rows)
        return open_draft(self._bundle, profile, self._threads, slots, alone=True)

    @property
    def _weight_bytes(self) -> int:
        return weight_bytes(self._bundle, self._role, self._precision)

    def _operators(self) -> dict[str, int]:
        """Nodes of a one-token step by operator, in an engine that is loaded for this alone; none
        in llama.cpp."""
        if self._role == "llamacpp draft":
            return {}
        with (
            tempfile.TemporaryDirectory(prefix="edgespec-bench-") as folder,
            session_profiles(Path(folder)) as profiles,
        ):
            engine = self._engine()
            slot = engine.open()
            final_choices(engine, [Row(slot, 0, SHORT_PROMPT)])
            profiles.restart()
            final_choices(engine, [Row(slot, len(SHORT_PROMPT), SHORT_PROMPT[:1])])
            return dict(profiles.nodes().most_common())

    def _turns(
        self, engine: Engine, llama: LlamaModel | None, clock: SessionClock, advance: Advance
    ) -> tuple[list[dict[StepShape, BlockTime]], list[list[LlamaTest]]]:
        """Times of all steps, and llama.cpp's tests, by turns."""
        plan, steps = self._plan, EngineSteps(engine, self._role, self._plan)
        turns, tests = [], []
        for _ in range(plan.turns):
            turns.append({s: steps.block(s, plan.steps_of(s), clock) for s in plan.shapes})
            if llama:
                tests.append(llama.programs.measure(llama.path, self._threads, plan))
            advance(1)
        return turns, tests

    def _step(
        self,
        shape: StepShape,
        turns: list[dict[StepShape, BlockTime]],
        tests: list[list[LlamaTest]],
        bandwidth_gb_s: float,
    ) -> TimedStep:
        times = [turn[shape] for turn in turns]
        ms = statistics.median(time.ms for time in times)
        read_bytes = self._weight_bytes + cache_bytes(self._bundle, shape)
        llama_ms = [test.ms for turn in tests for test in turn if test.shape == shape]
        pairs = zip(llama_ms, times, strict=True) if llama_ms else ()
        ratios = [llama / time.ms for llama, time in pairs]
        return TimedStep(
            role=self._role,
            precision=self._precision,
            threads=self._threads,
            rows=shape.rows,
            tokens=shape.tokens,
            past_tokens=shape.past_tokens,
            ms=round(ms, 4),
            python_ms=round(statistics.median(time.python_ms for time in times), 4),
            read_mb=round(read_bytes / 1e6, 2),
            bandwidth_share=round(read_bytes / (ms / 1e3) / (bandwidth_gb_s * 1e9), 4),
            llama_ms=round(statistics.median(llama_ms), 4) if llama_ms else None,
            ratio_to_llama=round(statistics.median(ratios), 3) if ratios else None,
        )


def _first_step_ms(engine: Engine) -> float:
    """Milliseconds of the first one-token step, after a short prompt."""
    slot = engine.open()
    final_choices(engine, [Row(slot, 0, SHORT_PROMPT, 0)])
    before = time.perf_counter()
    final_choices(engine, [Row(slot, len(SHORT_PROMPT), SHORT_PROMPT[:1])])
    taken_ms = (time.perf_counter() - before) * 1e3
    engine.close(slot)
    return taken_ms
