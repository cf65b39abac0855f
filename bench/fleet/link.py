"""A link as long as a round trip, for devices that share a process with hundreds of others."""

from __future__ import annotations

import random
import time
from collections import deque
from collections.abc import Callable

from edgespec.protocol import AnyMessage, Message
from edgespec.transport import Link

TICK = 0.001
"""Seconds; sockets wait in whole milliseconds, so the last ones of a wait are slept."""


class CellOver(Exception):
    """The measurement has ended, in whatever the device was doing."""


class DistantLink:
    """Holds packets for half a round trip each way, in order, and is what its device sleeps on.

    It has no thread: packets move whenever the device listens or sleeps, a draft step included,
    which for a simulated device is always. One that leaves at `now` arrives at

        max(arrival of the one before, now + max(0, N(rtt / 2, jitter)))
    """

    def __init__(
        self,
        link: Link,
        rtt_ms: float,
        jitter_ms: float,
        end: float,
        chance: random.Random,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        """`end`: when the measurement ends, by `clock`; listening and sleeping then raise
        `CellOver`."""
        self._link = link
        self._half, self._jitter = rtt_ms / 2e3, jitter_ms / 1e3
        self._end = end
        self._chance = chance
        self._clock, self._sleep = clock, sleep
        self._up: deque[tuple[float, Message]] = deque()
        self._down: deque[tuple[float, AnyMessage]] = deque()
        self._last_up = self._last_down = 0.0
        self.bytes_up = self.bytes_down = 0
        self.late: list[tuple[float, float]] = []
        """When each sleep ended, by `clock`, and by how many seconds too late."""

    def send(self, message: Message) -> None:
        self._last_up = max(self._last_up, self._arrival())
        self._up.append((self._last_up, message))
        self._give()

    def receive(self, timeout: float) -> list[AnyMessage]:
        """Raises `CellOver`."""
        self._pass(self._clock() + timeout, listening=True)
        now, messages = self._clock(), []
        while self._down and self._down[0][0] <= now:
            messages.append(self._down.popleft()[1])
        return messages

    def sleep(self, seconds: float) -> None:
        """Deaf to news, which comes in nevertheless. Raises `CellOver`."""
        end = self._clock() + seconds
        self._pass(end, listening=False)
        now = self._clock()
        self.late.append((now, now - end))

    def flush(self) -> None:
        """Sends what is under way at once: nobody will wait for it."""
        while self._up:
            self._link.send(self._up.popleft()[1])

    def _arrival(self) -> float:
        delay = self._half
        if self._jitter:
            delay = max(0.0, self._chance.gauss(delay, self._jitter))
        return self._clock() + delay

    def _give(self) -> None:
        while self._up and self._up[0][0] <= self._clock():
            self._link.send(self._up.popleft()[1])
        self.bytes_up = self._link.bytes_up

    def _take(self, timeout: float) -> None:
        for message in self._link.receive(timeout):
            self._last_down = max(self._last_down, self._arrival())
            self._down.append((self._last_down, message))
        self.bytes_down = self._link.bytes_down

    def _pass(self, until: float, *, listening: bool) -> None:
        """Carries packets until then or, where it is listened for, until one has arrived."""
        self._take(0.0)
        while True:
            self._give()
            now = self._clock()
            if now >= self._end:
                raise CellOver
            news = [self._down[0][0]] if listening and self._down else []
            if now >= min([until, *news]):
                return
            leaving = [self._up[0][0]] if self._up else []
            left = max(0.0, min([until, self._end, *news, *leaving]) - now)
            if left < 2 * TICK:
                self._sleep(left)
                left = 0.0
            self._take(max(0.0, left - TICK))
