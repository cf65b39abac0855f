"""The cloud's loop: one thread that polls its socket, runs one short step, and polls again."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING

from cloud_runtime.service import Service
from cloud_runtime.session_table import Outgoing
from cloud_runtime.status.tally import Activity
from cloud_runtime.steps import Batch, DraftStep, Step, Wait
from edgespec.config import CloudSettings
from edgespec.errors import EngineError
from edgespec.protocol import AnyMessage, Draft, Verdict
from edgespec.trace import Trace, What
from edgespec.transport import Hub
from engines.base import Engine, SegmentDone
from engines.drafters.base import Drafter, DraftRequest, Guess

if TYPE_CHECKING:
    from cloud_runtime.status.server import Status  # needs the extra `cloud`

log = logging.getLogger("edgespec.cloud")
IDLE_POLL_S = 0.5
"""Interval at which a server without work looks at its clock and at requests to stop."""
FAREWELL_S = 0.5
"""Time for which the server still receives after its last messages. Closing a connection with
unread packets may lose messages that were sent before."""


class CloudLoop:
    """Serves one target over one hub until it is asked to stop."""

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
        """`drafter` is the cloud draft. `status` publishes the state. `clock` returns seconds."""
        self._hub = hub
        self._service = service
        self._engine = engine
        self._settings = settings
        self._clock = clock
        self._drafter = drafter
        self._trace = trace
        if trace is not None:
            service.observer = partial(_trace_arrival, trace)
        self._status = status
        self._drain_s: float | None = None
        """Seconds that answers in flight have to finish; None: the cloud is not asked to stop."""
        self._drain_began: float | None = None
        self._lapped = clock()

    def request_drain(self) -> None:
        """Asks to finish the answers in flight and stop. Safe to call from a signal handler."""
        if self._drain_s is None:
            self._drain_s = self._settings.drain_timeout

    def request_stop(self) -> None:
        """Asks to stop after the step that runs. Safe to call from a signal handler."""
        self._drain_s = 0.0

    def run(self) -> None:
        """Serves; returns once drained."""
        while not self._drained():
            self.turn(IDLE_POLL_S)
        self._hand_back()

    def _hand_back(self) -> None:
        unfinished = self._service.sessions.hand_back(self._clock())
        if unfinished:
            log.warning("handing back %d answers unfinished", len(unfinished))
        self._send(unfinished)
        self._write_notes()
        end = self._clock() + (FAREWELL_S if unfinished else 0.0)
        while (left := end - self._clock()) > 0:
            self._exchange(left)

    def turn(self, patience_s: float) -> None:
        """Handles the messages that are there and runs one step.

        Without a step to run it waits for messages, at most `patience_s` seconds.
        """
        step = self._poll(0.0)
        if isinstance(step, Wait):
            wait_s = patience_s if step.seconds is None else min(patience_s, step.seconds)
            step = self._poll(wait_s)
        began = self._clock()
        if isinstance(step, Batch):
            self._run(step)
        elif isinstance(step, DraftStep):
            self._draft(step)
        else:
            return
        self._service.stepping.learn(step, self._clock() - began)
        self._lap("decide")

    def _lap(self, activity: Activity) -> None:
        """Adds the time since the last lap to an activity."""
        now, spent = self._clock(), self._service.tally.activities
        spent[activity] = spent.get(activity, 0.0) + now - self._lapped
        self._lapped = now

    def _poll(self, timeout_s: float) -> Step:
        self._exchange(timeout_s)
        self._service.sessions.expire(self._clock())
        self._send(self._service.sessions.refuse_grammars(self._clock()))
        self._write_notes()
        step = self._service.stepping.next(self._clock())
        self._lap("decide")
        return step

    def _exchange(self, timeout_s: float) -> None:
        """Receives packets and sends the replies."""
        hub = self._hub
        # The hub forgets the peers of removed keys, so keys are taken before.
        packets = [(peer, packet, hub.owner(peer)) for peer, packet in hub.receive(timeout_s)]
        if revoked := hub.take_revoked():
            self._service.sessions.revoke(revoked, self._clock())
        self._lap("wait" if timeout_s else "receive")
        for peer, packet, key in packets:
            if key not in revoked:
                self._send(self._service.receive(peer, packet, self._clock(), key))
        if self._status is not None:
            self._status.turned(self._service, self._clock())
        self._lap("receive")

    def _write_notes(self) -> None:
        for note in self._service.notes():
            note.write(log)

    def _run(self, batch: Batch) -> None:
        """Runs a batch; receives packets after each segment."""
        began, stepping = self._clock(), self._service.stepping
        for segment in self._segments(batch):
            self._lap("run")
            if segment.final:
                if self._trace:
                    _trace_batch(self._trace, batch, began, self._clock())
                self._send(stepping.commit(batch, segment.choices, self._clock()))
                self._lap("answer")
            else:
                self._send(stepping.hints(batch, segment.layer, segment.choices))
                self._lap("answer")
                self._exchange(0.0)
        self._lap("run")

    def _segments(self, batch: Batch) -> Iterator[SegmentDone]:
        """Runs the target. If it fails, only the sessions of this batch end."""
        try:
            yield from self._engine.run(batch.rows)
        except EngineError as error:
            log.error("the target failed on a batch of %d: %s", len(batch.rows), error)
            self._send(self._service.stepping.abandon(batch, str(error), self._clock()))

    def _draft(self, step: DraftStep) -> None:
        """Runs a step of the cloud draft: one token for each session."""
        assert self._drafter is not None
        began = self._clock()
        requests = [
            DraftRequest(session.id, session.draft_prefix, session.sampling, session.adjustments)
            for session in step.sessions
        ]
        self._drafter.retain({session.id for session in self._service.sessions.unfinished})
        guesses: Sequence[Guess | None] = [None] * len(requests)
        try:
            guesses = self._drafter.guess(requests)
        except EngineError as error:  # the sessions go on without
            log.error("the cloud draft failed on %d sessions: %s", len(requests), error)
        if self._trace:
            for request in requests:
                self._trace.add(
                    "draft", began, self._clock(), session=request.session,
                    base=len(request.tokens), tokens=1, rows=len(requests),
                )  # fmt: skip
        self._service.stepping.drafted(step, guesses)
        self._lap("run")

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
        """True once the cloud may stop. Sessions of unreachable devices are not waited for."""
        if self._drain_s is None:
            return False
        unfinished = self._service.sessions.unfinished
        if self._drain_began is None:
            log.info("draining: %d answers in flight", len(unfinished))
            self._send(self._service.drain())
            self._drain_began = self._clock()
        late = self._clock() - self._drain_began >= self._drain_s
        return late or all(session.connection.away for session in unfinished)


def _trace_arrival(trace: Trace, message: AnyMessage, now: float) -> None:
    if isinstance(message, Draft):
        trace.add(
            "receive", now, now, session=message.session, round=message.round, base=message.base,
            tokens=len(message.tokens),
        )  # fmt: skip


def _trace_batch(trace: Trace, batch: Batch, began: float, now: float) -> None:
    for session, row, _, draft in batch.entries:
        known = len(row.tokens) - len(draft)
        what: What = "verify" if draft else "prefill" if known > 1 else "decode"
        trace.add(
            what, began, now, session=session.id, base=row.start + known,
            tokens=len(draft) or (known if what == "prefill" else 0), rows=len(batch.entries),
        )  # fmt: skip
