"""Measurements of a device over all its answers: step times, round trips, acceptance."""

from __future__ import annotations

import statistics
from collections import deque

from edge_runtime.policy import DraftTimings
from edgespec.confidence import EXPECTED_ACCEPTANCE, AcceptanceEstimate
from edgespec.policies import ModePolicy

LONGEST_TRIP_S = 60.0
LONGEST_STEP_S = 10.0
"""Longer times are ignored: the clock has jumped."""


class Measurements:
    """Running figures. Times in seconds."""

    def __init__(
        self,
        step: float,
        batch: int = 1,
        policy: ModePolicy = ModePolicy(),
        acceptance: float = EXPECTED_ACCEPTANCE,
    ) -> None:
        """`step`: time of a target step for one token, as the cloud states it. `batch`: number of
        paths that one draft step may extend. `acceptance`: rate to expect before any verdict."""
        self.estimate = AcceptanceEstimate(acceptance)
        self.step = step
        """Time of a target step that decodes one token."""
        self._batch = batch
        self._policy = policy
        self._draft_steps: dict[int, deque[float]] = {}
        """The last draft steps, by number of paths."""
        self._trips: deque[float] = deque(maxlen=policy.measured_trips)

    @property
    def timings(self) -> DraftTimings:
        """The shortest round trip, since longer ones met a running step; the median draft step,
        since some wait for a core."""
        steps = {paths: statistics.median(times) for paths, times in [*self._draft_steps.items()]}
        one = steps.get(1, 0.0)
        extra = self._policy.extra_path_step_share
        together = [
            max(1.0, steps[paths] / one) if one and paths in steps else 1 + extra * (paths - 1)
            for paths in range(1, self._batch + 1)
        ]
        return DraftTimings(
            min(self._trips, default=0.0),
            self.step,
            one,
            self.estimate.acceptance,
            tuple(together),
        )

    def draft_steps(self, paths: int) -> list[float]:
        """The last draft steps over so many paths."""
        return list(self._draft_steps.get(paths, ()))

    def add_trip(self, seconds: float) -> None:
        if 0 <= seconds < LONGEST_TRIP_S:
            self._trips.append(seconds)

    def add_draft_step(self, seconds: float, paths: int) -> None:
        if 0 <= seconds < LONGEST_STEP_S:
            times = self._draft_steps.setdefault(
                paths, deque(maxlen=self._policy.measured_draft_steps)
            )
            times.append(seconds)

    def forget_draft_steps(self) -> None:
        self._draft_steps.clear()

    def add_target_step(self, seconds: float, tokens: int) -> None:
        """Adds the time between two verdicts, with `tokens` that the device did not draft."""
        if 0 <= seconds < LONGEST_STEP_S:
            self.step += self._policy.step_smoothing * (seconds / tokens - self.step)
