"""The cloud's loop: one thread that polls its socket, runs one segment, and polls again."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator

from cloud_runtime.scheduler import Batch
from cloud_runtime.service import Outgoing, Service
from edgespec.config import CloudSettings
from edgespec.errors import EngineError
from edgespec.transport import Hub
from engines.base import Engine, Step

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
    ) -> None:
        self._hub = hub
        self._service = service
        self._engine = engine
        self._settings = settings
        self._clock = clock
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
        """Takes the messages that are there and runs one batch; without one, waits `patience`."""
        batch = self._poll(0.0) or self._poll(patience)
        if batch is not None:
            self._run(batch)

    def _poll(self, timeout: float) -> Batch | None:
        self._exchange(timeout)
        for session in self._service.expire(self._clock()):
            log.info("session %x closed: its device has been silent", session)
        return self._service.next_batch()

    def _exchange(self, timeout: float) -> None:
        for peer, packet in self._hub.receive(timeout):
            self._send(self._service.receive(peer, packet, self._clock()))

    def _run(self, batch: Batch) -> None:
        for step in self._steps(batch):
            if step.final:
                self._send(self._service.commit(batch, step.choices, self._clock()))
            else:
                self._send(self._service.hints(batch, step.layer, step.choices))
                self._exchange(0.0)

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
