"""What steps cost on this machine: models fitted to measured times as they come.

    seconds = fixed + row * rows + token * rows * width + position * cached

A step's rows are padded to the longest, its width; `cached` is the sum of their cached lengths.
Least squares of the relative error, with forgetting, so that it follows a machine that slows down.
"""

from __future__ import annotations

import statistics
from collections import deque
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

FORGET = 0.98
FIRST_GUESS = (0.02, 0.001, 0.001, 1e-6)
"""Seconds; weighs little against the first measurement."""
KEPT = 3.0
"""Steps' worth of what is remembered."""
SHORT = 16
"""Tokens of a row, up to which it is one of decoding and verifying; wider ones run apart, and cost
less a token."""


class StepCosts:
    """`guess`: fixed, row, token, position, in seconds. `least`: tokens that a row costs at least,
    since an engine may pad."""

    def __init__(
        self, guess: tuple[float, float, float, float] = FIRST_GUESS, least: int = 1
    ) -> None:
        self._least = least
        self._moments: npt.NDArray[np.float64] = np.eye(len(guess))
        self._products = self._moments @ np.array(guess)
        self._solution = np.array(guess)
        self._steps = 0.0
        self._anchor = self._moments, self._products
        self._errors: deque[float] = deque(maxlen=200)

    def remember(self) -> None:
        """What was learnt so far goes on deciding what later steps leave open: a cloud that only
        decodes sees nothing of what a drafted token adds."""
        weight = KEPT / max(self._steps, 1.0)
        self._anchor = self._moments * weight, self._products * weight
        self._errors.clear()

    def learn(self, rows: int, width: int, seconds: float, cached: int = 0) -> None:
        """One measured step."""
        if seconds <= 0:
            return
        self._errors.append(abs(self.step(width, rows, cached) / seconds - 1))
        features = self._features(rows, width, cached) / seconds
        self._steps = self._steps * FORGET + 1
        self._moments = self._moments * FORGET + np.outer(features, features)
        self._products = self._products * FORGET + features
        moments, products = self._anchor
        self._solution = _solve(self._moments + moments, self._products + products)

    def step(self, width: int, rows: int = 1, cached: int = 0) -> float:
        """Seconds of a step."""
        fixed, row, token, position = self._solution
        tokens = rows * max(width, self._least)
        return float(max(fixed + row * rows + token * tokens + position * cached, 1e-6))

    @property
    def error(self) -> float:
        """Median relative error of the last 200 predictions, each made before its step; 0: none."""
        return statistics.median(self._errors) if self._errors else 0.0

    def _features(self, rows: int, width: int, cached: int) -> npt.NDArray[np.float64]:
        return np.array([1.0, rows, rows * max(width, self._least), cached])


def _solve(
    moments: npt.NDArray[np.float64], products: npt.NDArray[np.float64]
) -> npt.NDArray[np.float64]:
    """Least squares without negative costs: those that would be are left out."""
    kept = np.arange(len(products))
    while len(kept):
        solved = np.linalg.solve(moments[np.ix_(kept, kept)], products[kept])
        if (solved >= 0).all():
            break
        kept = kept[solved > 0]
    solution = np.zeros(len(products))
    if len(kept):
        solution[kept] = solved
    return solution


@dataclass
class Speeds:
    """The measured times of everything that the cloud runs."""

    costs: StepCosts = field(default_factory=StepCosts)
    """Steps of the target that decode and verify."""
    chunks: StepCosts = field(default_factory=StepCosts)
    """Steps over prompts."""
    cloud_draft: StepCosts | None = None
    """Steps of the draft beside the target, by number of texts; None: there is none."""
    hints: float = 0.0
    """Seconds that exit heads add to a step."""

    def of(self, width: int) -> StepCosts:
        return self.costs if width <= SHORT else self.chunks
