"""How sure a draft or an exit head is, as a probability that holds: 0.8 is right in eight of ten.

What is fitted is two numbers (Platt scaling) on the log-odds of the likeliest token, taken from
the TOP logits that every engine returns. Whether the numbers hold is the expected calibration
error: confidences in equal bins, the gap between their mean and the share that was right, weighed
by how many fell into the bin (Guo et al., arXiv 1706.04599).
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from edgespec.manifest import Calibration

Floats = npt.NDArray[np.float32]
BINS = 15


class Reliability(NamedTuple):
    """One bin of a reliability diagram."""

    confidence: float
    """Mean of the confidences in it."""
    right: float
    """Share that was right."""
    tokens: int


def log_odds(top_logits: npt.NDArray[np.floating]) -> Floats:
    """log p - log(1 - p) of the first of `top_logits` [n, TOP], which fall; float32 [n]."""
    logits = np.asarray(top_logits, np.float32)
    rest = logits[:, 1:] - logits[:, :1]
    largest = rest.max(axis=1)
    return np.asarray(-(largest + np.log(np.exp(rest - largest[:, None]).sum(axis=1))), np.float32)


def confidence(top_logits: npt.NDArray[np.floating], calibration: Calibration) -> Floats:
    """The probability that each row's likeliest token is the target's, float32 [n]."""
    return sigmoid(calibration.slope * log_odds(top_logits) + calibration.offset)


def sigmoid(x: Floats) -> Floats:
    return np.asarray(1 / (1 + np.exp(-np.clip(x, -60, 60))), np.float32)


def reliability(confidences: Floats, right: npt.NDArray[np.bool_]) -> list[Reliability]:
    """The bins that are not empty, of `BINS` equal ones between 0 and 1."""
    places = np.minimum((confidences * BINS).astype(int), BINS - 1)
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
    """Expected calibration error, between 0 and 1; 0 for no tokens."""
    bins = reliability(confidences, right)
    total = sum(b.tokens for b in bins)
    return sum(b.tokens * abs(b.confidence - b.right) for b in bins) / max(total, 1)
