"""Times and agreements of a target and its drafts on this machine."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from bench.choice.candidates import Measured
from bench.choice.ranking import BATCH_ROWS, BATCH_TOKENS, TargetTimes
from calibration.corpus import Sample
from calibration.exit_heads.evidence import of_engine
from edgespec.config import usable_cores
from edgespec.manifest import Bundle
from edgespec.progress import progress
from engines.backends import open_draft
from engines.base import Engine
from engines.onnxruntime_backend.engine import OrtSettings, load_target
from engines.step_times import RepeatedStep, times_ms

REPEATS, BATCH_REPEATS = 31, 9
FURTHER_TOKENS = BATCH_TOKENS[-1]
"""Tokens of the step from which the time of each further token is taken."""


def described(step_ms: float, token_ms: float) -> TargetTimes:
    """Times of a target of which only two are known: rows of a batch cost no more than tokens."""
    batch = {n: step_ms + token_ms * (BATCH_ROWS * n - 1) for n in BATCH_TOKENS}
    return TargetTimes(step_ms, token_ms, batch)


def measured(target: Engine) -> TargetTimes:
    """Times of a target here. Each batch takes turns with a step of one token, and is scaled by
    it, because the machine's speed may drift."""
    one, more = RepeatedStep(target), RepeatedStep(target, 1, FURTHER_TOKENS)
    step = _shortest({"one": one, "more": more}, REPEATS)
    batch = {}
    with progress("steps of the target", len(BATCH_TOKENS), unit="batches") as advance:
        for tokens in BATCH_TOKENS:
            rows = RepeatedStep(target, BATCH_ROWS, tokens)
            taken = _shortest({"one": one, "rows": rows}, BATCH_REPEATS)
            batch[tokens] = taken["rows"] * step["one"] / taken["one"]
            rows.close()
            advance(1)
    one.close()
    more.close()
    further = max(0.0, step["more"] - step["one"]) / (FURTHER_TOKENS - 1)
    return TargetTimes(step["one"], further, batch)


def open_target(bundle: Bundle, threads: int) -> Engine:
    """The target, with slots for a batch and two single steps."""
    settings = OrtSettings(threads=threads or usable_cores(), slots=BATCH_ROWS + 2)
    return load_target(bundle, settings)


class Meter:
    """Measures drafts against a target."""

    def __init__(
        self, samples: Sequence[Sample], target: Engine | None, times: TargetTimes, threads: int
    ) -> None:
        """Without `target`, steps are not scaled by the drift of the machine's speed."""
        self._samples = samples
        self._target = None if target is None else RepeatedStep(target)
        self._times = times
        self._threads = threads

    def __call__(self, bundle: Bundle, name: str, agreement: bool) -> Measured:
        engine = open_draft(bundle, name, self._threads, 2)
        right = self._agreement(engine, name) if agreement else 0.0
        steps: dict[str, RepeatedStep] = {"draft": RepeatedStep(engine)}
        if self._target is not None:
            steps["target"] = self._target
        taken = _shortest(steps, REPEATS)
        drift = self._times.step_ms / taken["target"] if self._target else 1.0
        return Measured(right, taken["draft"] * drift)

    def _agreement(self, engine: Engine, name: str) -> float:
        with progress(f"agreement of {name}", len(self._samples), unit="samples") as advance:
            return float(of_engine(engine, self._samples, advance).right.mean())


def _shortest(steps: Mapping[str, RepeatedStep], repeats: int) -> dict[str, float]:
    """The shortest time of each step; the steps take turns. Other load on the machine only adds."""
    return {name: min(taken) for name, taken in times_ms(steps, repeats).items()}
