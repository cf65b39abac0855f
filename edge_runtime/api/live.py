"""`GET /v1/edgespec/live`: what the device does at this moment, as server-sent events.

Each event has the spans since the last one (`edgespec.trace`), the figures so far, and whether the
cloud is there. Spans are kept for those who watch only; nobody watching costs the loop one test a
span. While somebody watches, a lost cloud is called again, and energy sensors are read.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import anyio
from anyio.to_thread import run_sync

from edge_runtime.api.connector import Connector
from edge_runtime.api.replies import event
from edge_runtime.api.streaming import EVENTS, Sender, Written, written
from edgespec.policies import LivePolicy
from edgespec.trace import Span, SpanReceiver
from engines.machine.energy.meter import EnergyMeter
from engines.machine.energy.sensors import find


@dataclass(eq=False)
class Watcher:
    """One client that watches."""

    spans: deque[Span]
    """Spans that it was not sent yet; of too many, the last."""
    leaving: bool = False
    """Its stream must end, since others came."""


class LiveSpans(SpanReceiver):
    """Hands the spans of the device's loop to everyone who watches."""

    def __init__(self, policy: LivePolicy = LivePolicy()) -> None:
        super().__init__("device")
        self.policy = policy
        self._watchers: list[Watcher] = []

    @property
    def wanted(self) -> bool:  # type: ignore[override]
        return bool(self._watchers)

    def take(self, span: Span) -> None:
        for watcher in self._watchers:
            watcher.spans.append(span)

    @contextmanager
    def watching(self) -> Iterator[Watcher]:
        """The spans from now on. If too many watch, the one who has watched longest must leave."""
        watcher = Watcher(deque(maxlen=self.policy.kept_spans))
        staying = [each for each in self._watchers if not each.leaving]
        if len(staying) >= self.policy.watchers:
            staying[0].leaving = True
        self._watchers = [*self._watchers, watcher]  # a new list: another thread reads the old one
        try:
            yield watcher
        finally:
            self._watchers = [each for each in self._watchers if each is not watcher]


class LiveStream:
    """The endpoint."""

    def __init__(
        self,
        connector: Connector,
        spans: LiveSpans,
        sensors: Path,
        offline: bool,
        ending: Callable[[], bool],
    ) -> None:
        """`sensors`: root of the file tree with the energy sensors. `offline`: answers go on
        without the cloud. `ending`: true once the server shuts down, which would otherwise wait for
        those who watch."""
        self._connector = connector
        self._spans = spans
        self._sensors = sensors
        self._offline = offline
        self._ending = ending

    def reply(self) -> Written:
        """The stream, until the client leaves or must leave."""
        return written(EVENTS, self._watch)

    async def _watch(self, sender: Sender) -> None:
        policy = self._spans.policy
        sent: tuple[float, dict[str, Any]] = (0.0, {})
        with self._spans.watching() as watcher:
            async with _metered(self._sensors) as energy:
                while not (watcher.leaving or self._ending()):
                    now, state = time.monotonic(), self._state() | energy()
                    taken = [watcher.spans.popleft() for _ in range(len(watcher.spans))]
                    if taken or state != sent[1] or now - sent[0] >= policy.heartbeat_s:
                        sent = now, state
                        await sender.chunk(event({"now": now, **state, "spans": taken}))
                    await anyio.sleep(policy.tick_s)
        await sender.chunk(b"", more=False)

    def _state(self) -> dict[str, Any]:
        self._connector.try_soon()
        client = self._connector.present
        return {
            "connected": bool(client and client.connected),
            "offline": self._offline,
            "figures": client.figures if client else None,
        }


@asynccontextmanager
async def _metered(root: Path) -> AsyncIterator[Callable[[], dict[str, Any]]]:
    """A function that returns the energy since now; without a sensor, None."""
    sensors = await run_sync(find, root)
    if not sensors.energy:
        yield lambda: {"energy": None}
        return
    meter = EnergyMeter(sensors)
    await run_sync(meter.__enter__)
    try:
        yield lambda: {"energy": _energy(meter)}
    finally:
        with anyio.CancelScope(shield=True):
            await run_sync(partial(meter.__exit__, None, None, None))


def _energy(meter: EnergyMeter) -> dict[str, Any]:
    energy = meter.energy()
    return {
        "joules": energy.joules,
        "seconds": energy.seconds,
        "celsius": energy.celsius,
        "covers": energy.covers,
    }
