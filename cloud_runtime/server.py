"""The cloud's loop: one thread that polls its socket, runs one short step, and polls again."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator

from cloud_runtime.scheduler import Batch, DraftStep, Wait
from cloud_runtime.service import Outgoing, Service
from edgespec.config import CloudSettings
from edgespec.errors import EngineError, ProtocolError
from edgespec.protocol import Draft, Packet, Verdict, unpack
from edgespec.trace import Trace, What
from edgespec.transport import Hub
from engines.base import Engine, Step
from engines.drafting import Drafter

log = logging.getLogger("edgespec.cloud")
IDLE_POLL = 0.5
"""Seconds; how often a server without work looks at its clock and at a request to stop."""


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
    ) -> None:
        """`drafter` drafts beside the target."""
        self._hub = hub
        self._service = service
        self._engine = engine
        self._settings = settings
        self._clock = clock
        self._drafter = drafter
        self._trace = trace
        self._drain_requested = False
        self._drain_end: float | None = None

    def request_drain(self) -> None:
        """Finish what is in flight, then stop. Safe to call from a signal handler."""
        self._drain_requested = True

    def run(self) -> None:
        """Returns once drained."""
        while not self._drained():
            self.turn(IDLE_POLL)

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

    def _poll(self, timeout: float) -> Batch | DraftStep | Wait:
        self._exchange(timeout)
        for session in self._service.expire(self._clock()):
            log.info("session %x closed: its device has been silent", session)
        return self._service.next(self._clock())

    def _exchange(self, timeout: float) -> None:
        for peer, packet in self._hub.receive(timeout):
            now = self._clock()
            if self._trace:
                _note_arrival(self._trace, packet, now)
            self._send(self._service.receive(peer, packet, now))

    def _run(self, batch: Batch) -> None:
        began = self._clock()
        for step in self._steps(batch):
            if step.final:
                if self._trace:
                    _note_batch(self._trace, batch, began, self._clock())
                self._send(self._service.commit(batch, step.choices, self._clock()))
            else:
                self._send(self._service.hints(batch, step.layer, step.choices))
                self._exchange(0.0)

    def _draft(self, step: DraftStep) -> None:
        """One id for each seat by the draft beside the target."""
        assert self._drafter is not None
        guesses: list[tuple[int, float] | None] = []
        for seat in step.seats:
            began, text = self._clock(), seat.text
            (guess,) = self._drafter.guess([text], seat.sampling)
            guesses.append(None if guess is None else (guess.token, guess.sure))
            if self._trace:
                self._trace.add(
                    "draft", began, self._clock(), session=seat.session, base=len(text), tokens=1
                )
        self._service.drafted(step, guesses)

    def _steps(self, batch: Batch) -> Iterator[Step]:
        """The engine's steps; where it fails, the sessions of this batch end and no others."""
        try:
            yield from self._engine.run(batch.rows)
        except EngineError as error:
            log.error("the target failed on a batch of %d: %s", len(batch.rows), error)
            self._send(self._service.abandon(batch, str(error)))

    def _send(self, outgoing: Outgoing) -> None:
        for peer, message in outgoing:
            self._hub.send(peer, message)
            if self._trace and isinstance(message, Verdict):
                now = self._clock()
                self._trace.add(
                    "send", now, now, session=message.session, round=message.round,
                    base=message.base, tokens=len(message.tokens),
                )  # fmt: skip

    def _drained(self) -> bool:
        if not self._drain_requested:
            return False
        if self._drain_end is None:
            log.info("draining: %d answers in flight", self._service.active)
            self._send(self._service.drain())
            self._drain_end = self._clock() + self._settings.drain_timeout
        if self._service.active and self._clock() < self._drain_end:
            return False
        if self._service.active:
            log.warning("stopping with %d answers unfinished", self._service.active)
        return True


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
