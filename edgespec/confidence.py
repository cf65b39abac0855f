"""Calibrated confidences: probabilities that a draft's or an exit head's token is the target's.

Two numbers (Platt scaling) are fitted to the log-odds of the likeliest token among the TOP logits
that every engine returns. The expected calibration error measures the result: confidences are put
into equal bins, and the gaps between mean confidence and share of right tokens are averaged with
the number of tokens as weight (Guo et al., arXiv 1706.04599).
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from edgespec.manifest import Calibration

Floats = npt.NDArray[np.float32]
BINS_COUNT = 15


class Reliability(NamedTuple):
    """One bin of a reliability diagram."""

    confidence: float
    """Mean of the confidences in the bin."""
    right: float
    """Share of right tokens in the bin."""
    tokens: int


def log_odds(top_logits: npt.NDArray[np.floating]) -> Floats:
    """Log-odds, log p - log(1 - p), of the first of the descending `top_logits`.

    `top_logits` is [n, TOP]; the result is float32 [n].
    """
    logits = np.asarray(top_logits, np.float32)
    rest = logits[:, 1:] - logits[:, :1]
    largest = rest.max(axis=1)
    return np.asarray(-(largest + np.log(np.exp(rest - largest[:, None]).sum(axis=1))), np.float32)


def confidence(top_logits: npt.NDArray[np.floating], calibration: Calibration) -> Floats:
    """Probability that the likeliest token of each row is the target's; float32 [n]."""
    return sigmoid(calibration.slope * log_odds(top_logits) + calibration.offset)


UNCALIBRATED = Calibration(agreement=0.0, slope=1.0, offset=0.0, error=0.0, tokens=0)
"""Calibration that keeps the model's own probabilities."""
LARGEST_LOG_ODDS = 12.0
"""Bound on the log-odds of a single probability, so that it is never 0 or 1."""


def probability(odds: float, calibration: Calibration, temperature: float = 0.0) -> float:
    """Confidence, in (0, 1), of log-odds `odds`, which may be infinite.

    Under sampling, `odds` come from scores with noise (`edgespec.sampling.rank`). A calibration is
    fitted on greedy text. Its slope is right for sampled text too, but its offset must shrink with
    the temperature. Expected calibration error of the built-in pair on 48 prompts, 2500 tokens
    each: 0.029 greedy; 0.024 at temperature 0.7 with top-p 0.9 (0.039 with the full offset); 0.041
    at temperature 1 (0.126).
    """
    offset = calibration.offset * max(0.0, 1.0 - temperature**2)
    scaled = calibration.slope * min(max(odds, -1e9), 1e9) + offset
    return 1 / (1 + math.exp(-min(max(scaled, -LARGEST_LOG_ODDS), LARGEST_LOG_ODDS)))


def sigmoid(x: Floats) -> Floats:
    """Logistic function; float32, shape of `x`."""
    return np.asarray(1 / (1 + np.exp(-np.clip(x, -60, 60))), np.float32)


def reliability(confidences: Floats, right: npt.NDArray[np.bool_]) -> list[Reliability]:
    """The bins that hold tokens, of `BINS_COUNT` equal bins between 0 and 1."""
    places = np.minimum((confidences * BINS_COUNT).astype(int), BINS_COUNT - 1)
    bins = []
    for place in np.unique(places):
        inside = places == place
        bins.append(
            Reliability(
                float(confidences[inside].mean()), float(right[inside].mean()), int(inside.sum())
            )
        )
    return bins


def calibration_error(confidences: Floats, right: npt.NDArray[np.bool_]) -> float:
    """Expected calibration error, between 0 and 1; 0 without tokens."""
    bins = reliability(confidences, right)
    total = sum(b.tokens for b in bins)
    return sum(b.tokens * abs(b.confidence - b.right) for b in bins) / max(total, 1)


EXPECTED_ACCEPTANCE = 0.8
"""Acceptance rate to expect of a draft that was never measured."""


class AcceptanceEstimate:
    """Estimate of how often a draft is right in the current answer.

    It learns an offset to the log-odds of the draft's confidences, and an acceptance rate, from
    every drafted id that is compared with the committed tokens. Ids that were not verified count
    too, so the estimate of an unused draft can recover.
    """

    LEARNING_RATE = 0.3
    DECAY = 0.95
    """Factor by which the weight of past ids shrinks with each new one."""
    PRIOR_TOKENS = 4.0
    """Weight of the expected acceptance rate, in tokens."""
    LEAST_CONFIDENCE = 1e-3
    """Bound on confidences, which also applies to their distance from 1."""

    def __init__(self, acceptance: float = EXPECTED_ACCEPTANCE) -> None:
        """`acceptance` is the acceptance rate to expect before any comparison."""
        self._expected = acceptance
        self.forget()

    def forget(self) -> None:
        """Returns to the initial state."""
        self._offset = 0.0
        self._right, self._seen = self.PRIOR_TOKENS * self._expected, self.PRIOR_TOKENS

    def learn(self, confidence: float, *, right: bool, first: bool = True) -> None:
        """Takes one comparison of an id that was drafted with `confidence` into account.

        Only an id that was the draft's first choice (`first`) counts for the acceptance rate.
        """
        self._offset += self.LEARNING_RATE * (right - self.probability(confidence))
        if not first:
            return
        self._right = self._right * self.DECAY + right
        self._seen = self._seen * self.DECAY + 1

    @property
    def acceptance(self) -> float:
        """Share of recent ids that were right."""
        return self._right / self._seen

    def probability(self, confidence: float) -> float:
        """Probability, in (0, 1), that an id drafted with `confidence` is right."""
        confidence = min(max(confidence, self.LEAST_CONFIDENCE), 1 - self.LEAST_CONFIDENCE)
        return 1 / (1 + (1 - confidence) / confidence * math.exp(-self._offset))
