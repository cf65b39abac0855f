"""Fitting confidences: two numbers that turn log-odds into a calibrated probability.

Platt scaling (Platt 1999) is `p = sigmoid(slope * log_odds + offset)`, fitted by maximum likelihood
on one half of the held-out samples and measured on the other. The targets are Platt's smoothed
ones, `(right + 1) / (right + 2)` for 1 and `1 / (wrong + 2)` for 0, so that the fit is finite even
if all tokens are right, all are wrong, or both are separable. The likelihood is concave in two
unknowns, so Newton's method with halved steps converges to its maximum from any start.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from edgespec.confidence import Floats, Reliability, calibration_error, reliability, sigmoid
from edgespec.manifest import Calibration

_MAX_NEWTON_STEPS = 50
_MIN_HALF_TOKENS = 2
"""Least positions of a half."""

Floats64 = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Evidence:
    """Predictions of a draft or an exit head at the positions of some samples, concatenated."""

    log_odds: Floats
    """[n]: log-odds of the likeliest token."""
    tokens: npt.NDArray[np.int64]
    """[n]: the likeliest token."""
    target: npt.NDArray[np.int64]
    """[n]: the target's token."""
    sample: npt.NDArray[np.int64]
    """[n]: number of the sample, ascending."""

    @property
    def right(self) -> npt.NDArray[np.bool_]:
        return np.asarray(self.tokens == self.target, np.bool_)

    def answers(self, what: Literal["tokens", "target"]) -> list[npt.NDArray[np.int64]]:
        """Return one of the two arrays, split into the samples' answers."""
        borders = np.flatnonzero(np.diff(self.sample)) + 1
        return np.split(getattr(self, what), borders)


def platt(log_odds: Floats, right: npt.NDArray[np.bool_]) -> tuple[float, float]:
    """Return (slope, offset) of the likeliest sigmoid; (1, 0) without evidence."""
    if not len(log_odds):
        return 1.0, 0.0
    count = int(right.sum())
    smoothed = np.where(right, (count + 1) / (count + 2), 1 / (len(right) - count + 2))
    # With a spread of 1 the two unknowns have the same magnitude.
    middle, spread = float(log_odds.mean()), float(log_odds.std()) or 1.0
    x = np.stack([(log_odds.astype(np.float64) - middle) / spread, np.ones(len(log_odds))], axis=1)
    weights = np.zeros(2)
    for _ in range(_MAX_NEWTON_STEPS):
        p = np.exp(-np.logaddexp(0.0, -x @ weights))
        ascent = x.T @ (smoothed - p)
        curve = (x * (p * (1 - p))[:, None]).T @ x + 1e-9 * np.eye(2)
        step = np.linalg.solve(curve, ascent)
        before = _likelihood(x @ weights, smoothed)
        while _likelihood(x @ (weights + step), smoothed) < before and np.abs(step).max() > 1e-9:
            step = step / 2
        weights = weights + step
        if np.abs(step).max() < 1e-8:
            break
    scaled = weights[0] / spread
    return float(scaled), float(weights[1] - scaled * middle)


def _likelihood(z: Floats64, smoothed: Floats64) -> float:
    """Return the mean log-likelihood of the smoothed targets under sigmoid(z)."""
    return float((smoothed * z - np.logaddexp(0.0, z)).mean())


def halves(evidence: Evidence) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.bool_]]:
    """Return the positions to fit on and the positions to measure on, [n] bool each.

    Every other sample is for fitting, or every other position if there are too few samples.
    """
    fit = evidence.sample % 2 == 0
    if min(fit.sum(), (~fit).sum()) < _MIN_HALF_TOKENS:
        fit = np.arange(len(fit)) % 2 == 0
    return fit, ~fit


def calibrate(evidence: Evidence) -> tuple[Calibration, list[Reliability]]:
    """Fit on one half. Return the figures and the reliability on the other half."""
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
