"""What a step of the target costs on this machine: a model fitted to measured times as they come.

    seconds = fixed + row * rows + token * tokens

by least squares with forgetting, so that it follows a machine that slows down.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

FORGET = 0.98
FIRST_GUESS = (0.02, 0.002, 0.001)
"""Seconds; weighs little against the first measurement."""
KEPT = 3.0
"""Steps' worth of what is remembered."""


class StepCosts:
    def __init__(self) -> None:
        self._moments: npt.NDArray[np.float64] = np.eye(3) * 1e-3
        self._products = self._moments @ np.array(FIRST_GUESS)
        self._solution = np.array(FIRST_GUESS)
        self._anchor = self._moments, self._products

    def remember(self) -> None:
        """What was learnt so far goes on deciding what later steps leave open: a cloud that only
        decodes sees nothing of what a drafted token adds."""
        weight = KEPT / self._moments[0, 0]
        self._anchor = self._moments * weight, self._products * weight

    def learn(self, rows: int, tokens: int, seconds: float) -> None:
        """One measured step: `tokens` in all over `rows` sessions."""
        features = np.array([1.0, rows, tokens])
        self._moments = self._moments * FORGET + np.outer(features, features)
        self._products = self._products * FORGET + features * seconds
        moments, products = self._anchor
        solved = np.linalg.solve(self._moments + moments, self._products + products)
        self._solution = np.maximum(solved, 0.0)

    def step(self, tokens: int, rows: int = 1) -> float:
        """Seconds of a step."""
        fixed, row, token = self._solution
        return float(max(fixed + row * rows + token * tokens, 1e-6))
