"""One device of a fleet: the real loop over a real socket, its draft replayed at its own pace."""

from __future__ import annotations

import random
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace

import zmq

from bench.fleet.drafters import PacedDrafter, RecordedDrafter
from bench.fleet.link import DistantLink, TrialOver
from bench.fleet.profile import DeviceKind
from bench.lab.methods import Method
from bench.lab.recording import Recording
from bench.lab.useless import UselessDrafter
from edge_runtime.handshake import DeviceIdentity
from edge_runtime.loop import EdgeLoop
from edgespec.config import EdgeSettings, Request
from edgespec.errors import EdgespecError, LinkError
from edgespec.telemetry import AnswerStats
from edgespec.transport import DealerLink
from engines.drafters.base import Drafter
from engines.drafters.ngram import NgramDrafter
from engines.drafters.none import NoDrafter

RETRY_S = 1.0
"""Seconds after which a refused device asks again."""


@dataclass
class TimedAnswer:
    """One answer, complete or cut off by the end of the trial. Times by `time.monotonic()`."""

    asked: float
    """When the device was given the prompt."""
    times: list[float] = field(default_factory=list)
    """When each token was committed on the device."""
    stats: AnswerStats = field(default_factory=AnswerStats)


@dataclass(frozen=True)
class TrialPlan:
    """Settings that all devices of one trial share. Times by `time.monotonic()`."""

    method: Method
    settings: EdgeSettings
    identity: DeviceIdentity
    recording: Recording
    context: zmq.Context[zmq.Socket[bytes]]
    begins: float
    """When the first device may come."""
    opens: float
    """When measuring begins; all devices have come by then."""
    closes: float


@dataclass
class FleetDevice:
    """A simulated device; `run` is its life in one trial, in a thread of its own."""

    number: int
    kind: DeviceKind
    plan: TrialPlan
    prompts: Sequence[int]
    """Numbers of the recorded prompts that it may be asked."""
    arrival: float
    """When it comes, by `time.monotonic()`."""
    target_rate: float
    """Tokens a second."""
    drafter: Drafter | None = None
    """A real draft, which takes its own time; None: the drafter of its kind."""
    answers: list[TimedAnswer] = field(default_factory=list)
    late: list[tuple[float, float]] = field(default_factory=list)
    """When each of its sleeps ended, and by how many seconds too late."""
    refused: int = 0

    def run(self) -> None:
        """Answer and think until the trial closes.

        Raises `EdgespecError` if an answer is not the recorded one.
        """
        plan, kind = self.plan, self.kind
        # The same for every method: the same prompts, lengths and pauses in the same order.
        self._chance = random.Random(self.number)
        dealer = DealerLink(plan.settings.connect, context=plan.context)
        link = DistantLink(
            dealer, kind.rtt_ms, kind.jitter_ms, plan.closes, random.Random(self.number)
        )
        self.late = link.late
        try:
            with suppress(TrialOver):
                link.sleep(max(0.0, self.arrival - time.monotonic()))
                self._live(link)
        finally:
            link.flush()
            dealer.close()

    def _live(self, link: DistantLink) -> None:
        plan = self.plan
        settings = replace(plan.settings, target_rate=self.target_rate)
        recorded = RecordedDrafter(plan.recording, len(self.kind.batch))
        loop = EdgeLoop.connect(link, self._drafter(recorded, link), plan.identity, settings)
        while True:
            self._number = self._chance.choice(self.prompts)
            recorded.begin(self._number)
            self._answer(loop, link)
            link.sleep(self._think_s())

    def _drafter(self, recorded: RecordedDrafter, link: DistantLink) -> Drafter:
        kind, plan = self.kind, self.plan
        if not plan.method.drafts_on_device:
            return NoDrafter()
        if self.drafter is not None:
            return self.drafter
        if kind.drafter == "none":
            return NoDrafter()
        drafter: Drafter = NgramDrafter() if kind.drafter == "ngram" else recorded
        if kind.drafter == "useless" or plan.method.useless:
            drafter = UselessDrafter(drafter)
        return PacedDrafter(drafter, kind, lambda: plan.recording.prompts[self._number], link.sleep)

    def _answer(self, loop: EdgeLoop, link: DistantLink) -> None:
        ids = tuple(self.plan.recording.prompt_ids[self._number])
        request = Request(ids, self._chance.randint(*self.kind.answer_tokens))
        answer = loop.start(request)
        timed = TimedAnswer(time.monotonic(), stats=answer.stats)
        self.answers.append(timed)
        try:
            for _ in loop.write(answer):
                timed.times.append(time.monotonic())
        except LinkError as error:
            if not error.retryable:
                raise
            self.refused += 1
            link.sleep(RETRY_S)
        finally:
            self._check(answer.state.answer, request.max_tokens, finished=answer.done)

    def _check(self, tokens: list[int], most: int, *, finished: bool) -> None:
        recorded = self.plan.recording.answers[self._number]
        expected = [each.token for each in recorded[:most]]
        if tokens != (expected if finished else expected[: len(tokens)]):
            raise EdgespecError(
                f"the answer to prompt {self._number + 1} is not the recorded one of "
                f"{self.plan.recording.pair}: either the recording is of another pair, or this "
                "machine computes other bits; 'edgespec doctor --exactness' tells"
            )

    def _think_s(self) -> float:
        mean_s = self.kind.think_s
        if not mean_s or self.kind.think == "fixed":
            return mean_s
        if self.kind.think == "uniform":
            return self._chance.uniform(0.0, 2 * mean_s)
        return self._chance.expovariate(1 / mean_s)
