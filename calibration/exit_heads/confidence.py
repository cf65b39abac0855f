"""Fitting confidences: two numbers that turn log-odds into a probability that holds.

Platt scaling (Platt 1999): `p = sigmoid(slope * log_odds + offset)`, fitted by maximum likelihood
on one half of the held-out samples and judged on the other. The targets are Platt's smoothed ones,
`(right + 1) / (right + 2)` for 1 and `1 / (wrong + 2)` for 0, so that evidence which is all right,
all wrong or cleanly separated has a finite fit. The likelihood is concave in two unknowns, so
Newton's method with halved steps reaches its top from anywhere.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from edgespec.confidence import Floats, Reliability, calibration_error, reliability, sigmoid
from edgespec.manifest import Calibration

_STEPS = 50
_FEWEST = 2
"""Positions that a half needs."""

Floats64 = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Evidence:
    """What a draft or an exit head said at the positions of some samples, one after another."""

    log_odds: Floats
    """[n], of its likeliest token."""
    tokens: npt.NDArray[np.int64]
    """[n]: that token."""
    target: npt.NDArray[np.int64]
    """[n]: the target's."""
    sample: npt.NDArray[np.int64]
    """[n]: the number of the sample, rising."""

    @property
    def right(self) -> npt.NDArray[np.bool_]:
        return np.asarray(self.tokens == self.target, np.bool_)

    def answers(self, what: Literal["tokens", "target"]) -> list[npt.NDArray[np.int64]]:
        """One of the two, cut into the samples' answers."""
        borders = np.flatnonzero(np.diff(self.sample)) + 1
        return np.split(getattr(self, what), borders)


def platt(log_odds: Floats, right: npt.NDArray[np.bool_]) -> tuple[float, float]:
    """(slope, offset) of the likeliest sigmoid; (1, 0) without evidence."""
    if not len(log_odds):
        return 1.0, 0.0
    wins = int(right.sum())
    wanted = np.where(right, (wins + 1) / (wins + 2), 1 / (len(right) - wins + 2))
    # A spread of 1 keeps the two unknowns of one size.
    middle, spread = float(log_odds.mean()), float(log_odds.std()) or 1.0
    x = np.stack([(log_odds.astype(np.float64) - middle) / spread, np.ones(len(log_odds))], axis=1)
    weights = np.zeros(2)
    for _ in range(_STEPS):
        p = np.exp(-np.logaddexp(0.0, -x @ weights))
        ascent = x.T @ (wanted - p)
        curve = (x * (p * (1 - p))[:, None]).T @ x + 1e-9 * np.eye(2)
        step = np.linalg.solve(curve, ascent)
        before = _likelihood(x @ weights, wanted)
        while _likelihood(x @ (weights + step), wanted) < before and np.abs(step).max() > 1e-9:
            step = step / 2
        weights = weights + step
        if np.abs(step).max() < 1e-8:
            break
    scaled = weights[0] / spread
    return float(scaled), float(weights[1] - scaled * middle)


def _likelihood(z: Floats64, wanted: Floats64) -> float:
    """Mean log-likelihood of the targets under sigmoid(z)."""
    return float((wanted * z - np.logaddexp(0.0, z)).mean())


def halves(evidence: Evidence) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.bool_]]:
    """Positions to fit on and positions to judge on: every other sample, or every other position
    where there are too few samples for that."""
    fit = evidence.sample % 2 == 0
    if min(fit.sum(), (~fit).sum()) < _FEWEST:
        fit = np.arange(len(fit)) % 2 == 0
    return fit, ~fit


def calibrate(evidence: Evidence) -> tuple[Calibration, list[Reliability]]:
    """The fit, and its figures and reliability on the half that it has not seen."""
    fit, judge = halves(evidence)
    right = evidence.right
    slope, offset = platt(evidence.log_odds[fit], right[fit])
    confidences = sigmoid(np.asarray(slope * evidence.log_odds[judge] + offset, np.float32))
    figures = Calibration(
        agreement=float(right[judge].mean()) if judge.any() else 0.0,
        slope=slope,
        offset=offset,
        error=calibration_error(confidences, right[judge]),
        tokens=int(judge.sum()),
    )
    return figures, reliability(confidences, right[judge])
