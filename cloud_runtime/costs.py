"""Durations of steps on this machine: models fitted to measured times as they come.

    seconds = fixed + row * rows + token * rows * width + position * cached

The rows of a step are padded to the longest, its width. `cached` is the sum of their cached
lengths. The fit is least squares of the relative error with forgetting, so that it follows a
machine that slows down.
"""

from __future__ import annotations

import statistics
from collections import deque
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from edgespec.policies import SchedulerPolicy

FIRST_GUESS_S = (0.02, 0.001, 0.001, 1e-6)
"""Fixed, row, token, position. Has the weight of one step."""
ERROR_WINDOW_STEPS = 200
SHORTEST_STEP_S = 1e-6


class StepCosts:
    """Cost model of one kind of step."""

    def __init__(
        self,
        guess_s: tuple[float, float, float, float] = FIRST_GUESS_S,
        min_tokens: int = 1,
        policy: SchedulerPolicy = SchedulerPolicy(),
    ) -> None:
        """`guess_s`: fixed, row, token, position. `min_tokens`: an engine pads shorter rows."""
        self._min_tokens = min_tokens
        self._policy = policy
        self._moments: npt.NDArray[np.float64] = np.eye(len(guess_s))
        self._products = self._moments @ np.array(guess_s)
        self._solution = np.array(guess_s)
        self._steps = 0.0
        self._anchor = self._moments, self._products
        self._errors: deque[float] = deque(maxlen=ERROR_WINDOW_STEPS)

    def remember(self) -> None:
        """Keeps what was learned so far as an anchor for what later steps leave open.

        A cloud that only decodes measures nothing about the cost of a draft token.
        """
        weight = self._policy.cost_memory_steps / max(self._steps, 1.0)
        self._anchor = self._moments * weight, self._products * weight
        self._errors.clear()

    def learn(self, rows: int, width: int, seconds: float, cached: int = 0) -> None:
        """Adds one measured step."""
        if seconds <= 0:
            return
        self._errors.append(abs(self.step(width, rows, cached) / seconds - 1))
        features = self._features(rows, width, cached) / seconds
        forgetting = self._policy.cost_forgetting
        self._steps = self._steps * forgetting + 1
        self._moments = self._moments * forgetting + np.outer(features, features)
        self._products = self._products * forgetting + features
        moments, products = self._anchor
        self._solution = _solve(self._moments + moments, self._products + products)

    def step(self, width: int, rows: int = 1, cached: int = 0) -> float:
        """Predicted seconds of a step."""
        fixed, row, token, position = self._solution
        tokens = rows * max(width, self._min_tokens)
        seconds = fixed + row * rows + token * tokens + position * cached
        return float(max(seconds, SHORTEST_STEP_S))

    @property
    def error(self) -> float:
        """Median relative error of the last predictions, each made before its step; 0: none."""
        return statistics.median(self._errors) if self._errors else 0.0

    def _features(self, rows: int, width: int, cached: int) -> npt.NDArray[np.float64]:
        return np.array([1.0, rows, rows * max(width, self._min_tokens), cached])


def _solve(
    moments: npt.NDArray[np.float64], products: npt.NDArray[np.float64]
) -> npt.NDArray[np.float64]:
    """Least squares with costs of at least 0: terms that come out negative are left out."""
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
    """Cost models of everything that the cloud runs."""

    costs: StepCosts = field(default_factory=StepCosts)
    """Steps of the target that decode and verify."""
    chunks: StepCosts = field(default_factory=StepCosts)
    """Steps of the target over prompts."""
    cloud_draft: StepCosts | None = None
    """Steps of the cloud draft, by number of sessions; None: the cloud has no draft."""
    hints_s: float = 0.0
    """Seconds that exit heads add to a step."""
    policy: SchedulerPolicy = SchedulerPolicy()

    def for_width(self, width: int) -> StepCosts:
        """The model for a step of the target of that width."""
        return self.costs if width <= self.policy.short_row_tokens else self.chunks
