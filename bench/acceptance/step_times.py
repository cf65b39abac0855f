"""Step times of a draft and a target, measured in one run."""

from __future__ import annotations

from edgespec.sampling import Sampling
from engines.drafters.base import DraftRequest
from engines.drafters.ngram import NgramDrafter
from engines.step_times import PAST_TOKENS, Step, medians_ms

REPEAT_COUNT = 61


def lookup_step() -> Step:
    """Step of prompt lookup, with one more token of the same text each time."""
    drafter, text = NgramDrafter(), [number % 50 for number in range(PAST_TOKENS)]

    def step() -> object:
        text.append(len(text) % 50)
        return drafter.guess([DraftRequest(0, text, Sampling())])

    step()  # indexes the prompt
    return step


def medians(steps: dict[str, Step]) -> dict[str, float]:
    """Median milliseconds of each step; the steps take turns."""
    return medians_ms(steps, REPEAT_COUNT)
