"""Simulated drafts: recorded guesses after the time of a draft step."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence

from bench.simulation.script import Script
from bench.simulation.times import Times
from bench.simulation.virtual_time import Process
from edgespec.confidence import EXPECTED_ACCEPTANCE
from engines.drafters.base import DraftRequest, Guess


class SimulatedDrafter:
    """Device draft."""

    def __init__(
        self,
        script: Script,
        process: Process,
        step_s: Callable[[int], float],
        batch: int,
        name: str,
    ) -> None:
        """`step_s(n)`: seconds of a draft step over n branches."""
        self.name = name
        self.batch = batch
        self.acceptance = script.acceptance
        self._script, self._process, self._step_s = script, process, step_s

    def guess(self, requests: Sequence[DraftRequest]) -> list[Guess | None]:
        self._process.sleep(self._step_s(len(requests)))
        return [self._script.guess(request.tokens) for request in requests]

    def retain(self, sessions: Collection[int]) -> None:
        """There is nothing to forget."""


class SimulatedCloudDraft:
    """Cloud draft."""

    name = "draft"
    batch = 1
    acceptance = EXPECTED_ACCEPTANCE

    def __init__(self, script: Script, times: Times) -> None:
        self.process: Process | None = None
        self.steps: list[tuple[float, float]] = []
        """(start, duration) of each step, in virtual seconds."""
        self._script, self._times = script, times
        self._read: dict[int, int] = {}
        """Tokens read of each session."""

    def guess(self, requests: Sequence[DraftRequest]) -> list[Guess | None]:
        assert self.process is not None
        unread = [max(1, len(r.tokens) - self._read.get(r.session, 0)) for r in requests]
        self._read |= {request.session: len(request.tokens) for request in requests}
        seconds = self._times.cloud_draft(len(requests), max(unread))
        self.steps.append((self.process.world.now, seconds))
        self.process.sleep(seconds)
        return [self._script.guess(request.tokens) for request in requests]

    def retain(self, sessions: Collection[int]) -> None:
        self._read = {s: read for s, read in self._read.items() if s in sessions}
