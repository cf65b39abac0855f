"""One device of a fleet: the real loop over a real socket, its draft replayed in its own time."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Collection, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace

import zmq

from bench.fleet.link import CellOver, DistantLink
from bench.fleet.profile import Kind
from bench.lab.methods import Method
from bench.lab.recording import Recording
from bench.lab.useless import UselessDrafter
from edge_runtime.handshake import DeviceIdentity
from edge_runtime.loop import EdgeLoop
from edgespec.config import EdgeSettings, Request
from edgespec.errors import EdgespecError, LinkError
from edgespec.protocol import Hello
from edgespec.telemetry import AnswerStats
from edgespec.transport import DealerLink
from engines.drafters.base import Drafter, DraftRequest, Guess
from engines.drafters.ngram import NgramDrafter
from engines.drafters.none import NoDrafter

REFUSED = 1.0
"""Seconds after which a device that was refused asks again."""


class Replay:
    """Says what the recorded draft said; off the recorded path, what it said somewhere else.

    The same text always gets the same guess.
    """

    name = "recorded"

    def __init__(self, recording: Recording, batch: int) -> None:
        self.batch = batch
        self._recording = recording
        self._anything = [said for answer in recording.answers for said in answer]
        self.begin(0)

    def begin(self, number: int) -> None:
        """The recorded prompt of that number is about to be answered."""
        self._said = self._recording.answers[number]
        self._tokens = [said.token for said in self._said]
        self._prompt = self._recording.prompts[number]

    def retain(self, sessions: Collection[int]) -> None:
        """There is nothing to forget."""

    def guess(self, requests: Sequence[DraftRequest]) -> list[Guess | None]:
        return [self._guess(request.tokens) for request in requests]

    def _guess(self, text: Sequence[int]) -> Guess | None:
        place = len(text) - self._prompt
        if place < len(self._said) and list(text[self._prompt :]) == self._tokens[:place]:
            here = self._said[place]
        else:
            here = self._anything[hash(tuple(text)) % len(self._anything)]
        if here.guess < 0:
            return None
        return Guess(here.guess, here.confidence, here.runners_up)


class Paced:
    """A drafter that takes the time which its kind of device would."""

    def __init__(
        self,
        drafter: Drafter,
        kind: Kind,
        prompt: Callable[[], int],
        sleep: Callable[[float], None],
    ) -> None:
        """`prompt` tells the tokens of the prompt that is being answered."""
        self.name, self.batch = drafter.name, drafter.batch
        self._drafter, self._kind, self._prompt, self._sleep = drafter, kind, prompt, sleep
        self._unread = 0

    def retain(self, sessions: Collection[int]) -> None:
        self._drafter.retain(sessions)
        self._unread = self._prompt()

    def guess(self, requests: Sequence[DraftRequest]) -> Sequence[Guess | None]:
        kind = self._kind
        step = kind.draft_ms * kind.batch[min(len(requests), len(kind.batch)) - 1]
        reading, self._unread = self._unread * kind.read_ms, 0
        self._sleep((step + reading) / 1e3)
        return self._drafter.guess(requests)


@dataclass
class Written:
    """One answer, or as much of it as there was time for."""

    asked: float
    """When its prompt was given to the device, `time.monotonic()`, as all times here."""
    times: list[float] = field(default_factory=list)
    """When each token was committed on the device."""
    stats: AnswerStats = field(default_factory=AnswerStats)


@dataclass(frozen=True)
class Cell:
    """What all devices of one measurement share."""

    method: Method
    settings: EdgeSettings
    hello: Hello
    end_ids: list[int]
    recording: Recording
    context: zmq.Context[zmq.Socket[bytes]]
    begin: float
    """When the first device may come."""
    opens: float
    """When measuring begins; all have come by then."""
    closes: float


@dataclass
class FleetDevice:
    """`run` is the life of one device in one cell, in a thread of its own."""

    number: int
    kind: Kind
    cell: Cell
    prompts: Sequence[int]
    """Numbers of the recorded prompts that it may be asked."""
    arrival: float
    promised: float
    """Tokens a second."""
    drafter: Drafter | None = None
    """A real draft, which takes the time that it takes; None: what the kind says."""
    written: list[Written] = field(default_factory=list)
    late: list[tuple[float, float]] = field(default_factory=list)
    """When its sleeps ended, and by how many seconds too late."""
    refused: int = 0

    def run(self) -> None:
        """Answers and thinks until the cell closes.

        Raises `EdgespecError` if an answer is not the recorded one.
        """
        cell, kind = self.cell, self.kind
        # The same for every method: the same prompts, lengths and pauses in the same order.
        self._chance = random.Random(self.number)
        dealer = DealerLink(cell.settings.connect, context=cell.context)
        link = DistantLink(
            dealer, kind.rtt_ms, kind.jitter_ms, cell.closes, random.Random(self.number)
        )
        self.late = link.late
        try:
            with suppress(CellOver):
                link.sleep(max(0.0, self.arrival - time.monotonic()))
                self._live(link)
        finally:
            link.flush()
            dealer.close()

    def _live(self, link: DistantLink) -> None:
        cell = self.cell
        settings = replace(cell.settings, target_rate=self.promised)
        replay = Replay(cell.recording, len(self.kind.batch))
        loop = EdgeLoop.connect(
            link,
            self._drafter(replay, link),
            DeviceIdentity(cell.hello, cell.end_ids),
            settings,
        )
        while True:
            number = self._chance.choice(self.prompts)
            replay.begin(number)
            self._number = number
            self._answer(loop, link)
            link.sleep(self._thinking())

    def _drafter(self, replay: Replay, link: DistantLink) -> Drafter:
        kind = self.kind
        if self.cell.method.mode not in ("auto", "edge"):
            return NoDrafter()
        if self.drafter is not None:
            return self.drafter
        if kind.drafter == "none":
            return NoDrafter()
        drafter: Drafter = NgramDrafter() if kind.drafter == "ngram" else replay
        if kind.drafter == "useless" or self.cell.method.useless:
            drafter = UselessDrafter(drafter)
        return Paced(drafter, kind, lambda: self.cell.recording.prompts[self._number], link.sleep)

    def _answer(self, loop: EdgeLoop, link: DistantLink) -> None:
        ids = tuple(self.cell.recording.prompt_ids[self._number])
        request = Request(ids, self._chance.randint(*self.kind.answer_tokens))
        answer, written = loop.start(request), Written(time.monotonic())
        written.stats = answer.stats
        self.written.append(written)
        try:
            for _ in loop.write(answer):
                written.times.append(time.monotonic())
        except LinkError as error:
            if not error.retryable:
                raise
            self.refused += 1
            link.sleep(REFUSED)
        finally:
            self._check(answer.state.answer, request.max_tokens, finished=answer.done)

    def _check(self, tokens: list[int], most: int, *, finished: bool) -> None:
        said = self.cell.recording.answers[self._number]
        wanted = [each.token for each in said[:most]]
        if tokens != (wanted if finished else wanted[: len(tokens)]):
            raise EdgespecError(
                f"the answer to prompt {self._number + 1} is not the recorded one of "
                f"{self.cell.recording.pair}: either the recording is of another pair, or this "
                "machine computes other bits; 'edgespec doctor --exactness' tells"
            )

    def _thinking(self) -> float:
        mean = self.kind.think_s
        if not mean or self.kind.think == "fixed":
            return mean
        if self.kind.think == "uniform":
            return self._chance.uniform(0.0, 2 * mean)
        return self._chance.expovariate(1 / mean)
