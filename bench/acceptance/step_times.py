"""Step times of a draft and a target, measured in one run."""

from __future__ import annotations

from edgespec.sampling import Sampling
from engines.drafters.base import DraftRequest
from engines.drafters.ngram import NgramDrafter
from engines.step_times import PAST_TOKENS, Step, medians_ms

REPEATS = 61


def lookup_step() -> Step:
    """A guess by prompt lookup, one token further along a text each time."""
    drafter, text = NgramDrafter(), [number % 50 for number in range(PAST_TOKENS)]

    def step() -> object:
        text.append(len(text) % 50)
        return drafter.guess([DraftRequest(0, text, Sampling())])

    step()  # the prompt is indexed once
    return step


def medians(steps: dict[str, Step]) -> dict[str, float]:
    """Milliseconds of each step, which take turns; the median of `REPEATS`."""
    return medians_ms(steps, REPEATS)
