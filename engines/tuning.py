"""Measuring how many threads a bundle's models should have on this machine."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

from edgespec.config import usable_cores
from edgespec.errors import EdgespecError
from edgespec.manifest import Bundle
from edgespec.progress import progress
from engines.backends import open_draft, open_target
from engines.base import Engine
from engines.machine import profiles
from engines.machine.threads import draft_model, target_model
from engines.step_times import RepeatedStep, medians_ms

GAIN = 0.05
"""Share of a step's time that more threads must save."""
REPEATS = 30
"""Steps that each number of threads runs, in turns with the best number so far."""
VERIFIED_TOKENS = 5
"""Tokens of a target's step: a draft of four, and the token before it."""

Open = Callable[[int], Engine]
"""Loads a model with a number of threads."""


class Tuned(NamedTuple):
    """Result for one model."""

    model: str
    threads: int
    """0 if the model cannot run here."""
    times_ms: dict[int, float]
    """Step times by number of threads."""
    reason: str = ""
    """Why the model cannot run here."""


def thread_counts(cores: int) -> list[int]:
    """Returns 1, 2, 3, 4, 6, 8, 12, 16 and so on up to the number of cores, which is the last."""
    counts = {1, cores}
    power = 2
    while power <= cores:
        counts |= {power, min(cores, power * 3 // 2)}
        power *= 2
    return sorted(counts)


def tune(model: str, open_model: Open, tokens: int, counts: Sequence[int]) -> Tuned:
    """Raises the number of threads as long as a step gets faster by `GAIN` each time.

    Two engines of the model are loaded at a time.
    """
    threads, *others = counts
    times: dict[int, float] = {}
    best = _step(open_model, threads, tokens)
    times[threads] = medians_ms({"best": best}, REPEATS)["best"]
    for count in others:
        more = _step(open_model, count, tokens)
        found = medians_ms({"best": best, "more": more}, REPEATS)
        times[threads], times[count] = found["best"], found["more"]
        if found["more"] > (1 - GAIN) * found["best"]:
            break
        threads, best = count, more
    return Tuned(model, threads, times)


def tune_bundle(bundle: Bundle, backend: str, cores: int = 0) -> Iterator[Tuned]:
    """Yields a result for each draft of the bundle, and for the target in a back end."""
    counts = thread_counts(cores or usable_cores())
    models: list[tuple[str, Open, int]] = [
        (draft_model(name), _draft(bundle, name), 1)
        for name in bundle.manifest.drafts
        if profiles.profile(name).backend != "tensorrt"
    ]
    models.append(
        (target_model(backend), lambda count: open_target(bundle, backend, count), VERIFIED_TOKENS)
    )
    with progress("tuning", len(models), unit="models") as advance:
        for model, open_model, tokens in models:
            try:
                yield tune(model, open_model, tokens, counts)
            except EdgespecError as error:
                yield Tuned(model, 0, {}, str(error))
            advance(1)


def report(tuned: Sequence[Tuned]) -> str:
    """Returns a line for each model."""
    width = max(len(one.model) for one in tuned)
    return "\n".join(f"{one.model:{width}}  {_line(one)}" for one in tuned)


def _line(tuned: Tuned) -> str:
    if not tuned.threads:
        return f"does not run here: {tuned.reason}"
    times = ", ".join(f"{ms:.1f} ms with {count}" for count, ms in sorted(tuned.times_ms.items()))
    return f"{tuned.threads} thread{'s' * (tuned.threads > 1)} ({times})"


def _draft(bundle: Bundle, name: str) -> Open:
    return lambda count: open_draft(bundle, name, count, 1, alone=True)


def _step(open_model: Open, threads: int, tokens: int) -> RepeatedStep:
    return RepeatedStep(open_model(threads), tokens=tokens)
