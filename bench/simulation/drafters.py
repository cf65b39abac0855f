"""Simulated drafts: recorded guesses after the time of a draft step."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence

from bench.simulation.script import Script, wrong_guess
from bench.simulation.times import Times
from bench.simulation.virtual_time import Process
from edgespec.sampling import Sampling
from engines.drafters.base import Guess


class SimulatedDrafter:
    """Device draft. With `useless` its times and confidences are the recorded ones and its tokens
    are never right."""

    def __init__(
        self,
        script: Script,
        process: Process,
        step_s: Callable[[int], float],
        batch: int,
        name: str,
        *,
        useless: bool = False,
    ) -> None:
        """`step_s(n)`: seconds of a draft step over n branches."""
        self.name = name
        self.batch = batch
        self._script, self._process, self._step_s = script, process, step_s
        self._useless = useless

    def guess(self, texts: Sequence[Sequence[int]], sampling: Sampling) -> list[Guess | None]:
        del sampling
        self._process.sleep(self._step_s(len(texts)))
        guesses = (self._script.guess(text) for text in texts)
        if self._useless:
            return [wrong_guess(guess) for guess in guesses]
        return list(guesses)

    def reset(self) -> None:
        pass


class SimulatedCloudDraft:
    """Cloud draft."""

    def __init__(self, script: Script, times: Times) -> None:
        self.process: Process | None = None
        self.steps: list[tuple[float, float]] = []
        """(start, duration) of each step, in virtual seconds."""
        self._script, self._times = script, times
        self._read: dict[int, int] = {}
        """Tokens read of each session."""

    def guess(
        self, sessions: Sequence[int], texts: Sequence[Sequence[int]], sampling: Sampling
    ) -> list[Guess | None]:
        del sampling
        assert self.process is not None
        unread = [
            max(1, len(text) - self._read.get(session, 0))
            for session, text in zip(sessions, texts, strict=True)
        ]
        self._read |= {s: len(text) for s, text in zip(sessions, texts, strict=True)}
        seconds = self._times.cloud_draft(len(texts), max(unread))
        self.steps.append((self.process.world.now, seconds))
        self.process.sleep(seconds)
        return [self._script.guess(text) for text in texts]

    def retain(self, sessions: Collection[int]) -> None:
        self._read = {s: read for s, read in self._read.items() if s in sessions}
