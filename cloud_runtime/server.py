"""The cloud's loop: one thread that polls its socket, runs one short step, and polls again."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

from cloud_runtime.scheduler import Batch, DraftStep, Wait
from cloud_runtime.service import Outgoing, Service
from cloud_runtime.status.tally import Activity
from edgespec.config import CloudSettings
from edgespec.errors import EngineError, ProtocolError
from edgespec.protocol import Draft, Packet, Verdict, unpack
from edgespec.trace import Trace, What
from edgespec.transport import Hub
from engines.base import Engine, SegmentDone
from engines.drafters.base import Drafter, DraftRequest, Guess

if TYPE_CHECKING:
    from cloud_runtime.status.server import Status  # needs the extra `cloud`

log = logging.getLogger("edgespec.cloud")
IDLE_POLL = 0.5
"""Seconds; how often a server without work looks at its clock and at a request to stop."""
FAREWELL = 0.5
"""Seconds for which it still listens after its last word: a connection that is closed on unread
packets may lose what was sent before."""


class CloudLoop:
    """Serves one target over one hub until it is told to stop."""

    def __init__(
        self,
        hub: Hub,
        service: Service,
        engine: Engine,
        settings: CloudSettings,
        clock: Callable[[], float] = time.monotonic,
        *,
        drafter: Drafter | None = None,
        trace: Trace | None = None,
        status: Status | None = None,
    ) -> None:
        """`drafter` drafts beside the target; `status` is told how things are."""
        self._hub = hub
        self._service = service
        self._engine = engine
        self._settings = settings
        self._clock = clock
        self._drafter = drafter
        self._trace = trace
        self._status = status
        self._patience: float | None = None
        """Seconds that answers in flight have to finish, once the cloud is to stop."""
        self._drain_began: float | None = None
        self._lapped = clock()

    def request_drain(self) -> None:
        """Finish what is in flight, then stop. Safe to call from a signal handler."""
        if self._patience is None:
            self._patience = self._settings.drain_timeout

    def request_stop(self) -> None:
        """Hand back what is in flight after the step that runs, and stop. Safe likewise."""
        self._patience = 0.0

    def run(self) -> None:
        """Returns once drained."""
        while not self._drained():
            self.turn(IDLE_POLL)
        self._hand_back()

    def _hand_back(self) -> None:
        unfinished = self._service.hand_back(self._clock())
        if unfinished:
            log.warning("handing back %d answers unfinished", len(unfinished))
        self._send(unfinished)
        self._say()
        end = time.monotonic() + (FAREWELL if unfinished else 0.0)
        while (left := end - time.monotonic()) > 0:
            self._exchange(left)

    def turn(self, patience: float) -> None:
        """Takes the messages that are there and runs one step; without one, waits at most
        `patience` seconds for news."""
        work = self._poll(0.0)
        if isinstance(work, Wait):
            left = patience if work.seconds is None else min(patience, work.seconds)
            work = self._poll(left)
        began = self._clock()
        if isinstance(work, Batch):
            self._run(work)
        elif isinstance(work, DraftStep):
            self._draft(work)
        else:
            return
        self._service.learn(work, self._clock() - began)
        self._lap("decide")

    def _lap(self, activity: Activity) -> None:
        """All since the last lap was that."""
        now, spent = self._clock(), self._service.tally.activities
        spent[activity] = spent.get(activity, 0.0) + now - self._lapped
        self._lapped = now

    def _poll(self, timeout: float) -> Batch | DraftStep | Wait:
        self._exchange(timeout)
        self._service.expire(self._clock())
        self._say()
        work = self._service.next(self._clock())
        self._lap("decide")
        return work

    def _exchange(self, timeout: float) -> None:
        packets = self._hub.receive(timeout)
        self._lap("wait" if timeout else "receive")
        for peer, packet in packets:
            now = self._clock()
            if self._trace:
                _note_arrival(self._trace, packet, now)
            self._send(self._service.receive(peer, packet, now))
        if self._status is not None:
            self._status.turned(self._service, self._clock())
        self._lap("receive")

    def _say(self) -> None:
        for note in self._service.notes():
            note.write(log)

    def _run(self, batch: Batch) -> None:
        began = self._clock()
        for step in self._steps(batch):
            self._lap("run")
            if step.final:
                if self._trace:
                    _note_batch(self._trace, batch, began, self._clock())
                self._send(self._service.commit(batch, step.choices, self._clock()))
                self._lap("answer")
            else:
                self._send(self._service.hints(batch, step.layer, step.choices))
                self._lap("answer")
                self._exchange(0.0)
        self._lap("run")

    def _draft(self, step: DraftStep) -> None:
        """One id for each seat by the draft beside the target."""
        assert self._drafter is not None
        began, texts = self._clock(), [seat.text for seat in step.seats]
        self._drafter.retain({seat.session for seat in self._service.unfinished})
        guesses: Sequence[Guess | None] = [None] * len(texts)
        try:
            guesses = self._drafter.guess(
                [DraftRequest(s.session, s.text, s.sampling) for s in step.seats]
            )
        except EngineError as error:  # the sessions go on without
            log.error("the draft beside the target failed on %d texts: %s", len(texts), error)
        if self._trace:
            for seat, text in zip(step.seats, texts, strict=True):
                self._trace.add(
                    "draft", began, self._clock(), session=seat.session, base=len(text), tokens=1,
                    rows=len(texts),
                )  # fmt: skip
        self._service.drafted(step, guesses)
        self._lap("run")

    def _steps(self, batch: Batch) -> Iterator[SegmentDone]:
        """The engine's steps; where it fails, the sessions of this batch end and no others."""
        try:
            yield from self._engine.run(batch.rows)
        except EngineError as error:
            log.error("the target failed on a batch of %d: %s", len(batch.rows), error)
            self._send(self._service.abandon(batch, str(error), self._clock()))

    def _send(self, outgoing: Outgoing) -> None:
        for peer, message in outgoing:
            fate = self._hub.send(peer, message)
            if fate is not None:
                self._service.lost(peer, fate, self._clock())
            if self._trace and isinstance(message, Verdict):
                now = self._clock()
                self._trace.add(
                    "send", now, now, session=message.session, round=message.round,
                    base=message.base, tokens=len(message.tokens),
                )  # fmt: skip

    def _drained(self) -> bool:
        if self._patience is None:
            return False
        if self._drain_began is None:
            log.info("draining: %d answers in flight", len(self._service.unfinished))
            self._send(self._service.drain())
            self._drain_began = self._clock()
        late = self._clock() - self._drain_began >= self._patience
        # Who cannot be reached is not waited for; its device goes on elsewhere.
        return late or all(seat.away for seat in self._service.unfinished)


def _note_arrival(trace: Trace, packet: Packet, now: float) -> None:
    try:
        message = unpack(packet)
    except ProtocolError:
        return
    if isinstance(message, Draft):
        trace.add(
            "receive", now, now, session=message.session, round=message.round, base=message.base,
            tokens=len(message.tokens),
        )  # fmt: skip


def _note_batch(trace: Trace, batch: Batch, began: float, now: float) -> None:
    for seat, row in zip(batch.seats, batch.rows, strict=True):
        drafted = len(seat.draft)
        known = len(row.tokens) - drafted
        what: What = "verify" if drafted else "prefill" if known > 1 else "decode"
        trace.add(
            what, began, now, session=seat.session, base=row.start + known,
            tokens=drafted or (known if what == "prefill" else 0), rows=len(batch.rows),
        )  # fmt: skip
