"""A link with a round-trip time, for devices that share one process with hundreds of others."""

from __future__ import annotations

import random
import time
from collections import deque
from collections.abc import Callable

from edgespec.link_state import LinkState
from edgespec.protocol import AnyMessage, Message
from edgespec.transport import Link

TICK_S = 0.001
"""Resolution of a socket's timeout; the last two ticks of a wait are slept."""


class TrialOver(Exception):
    """The trial has ended, whatever the device was doing."""


class DistantLink:
    """A link that holds packets for half a round trip each way, in order.

    Its device also sleeps on it. It has no thread: packets move whenever the device listens or
    sleeps (a draft step of a simulated device is a sleep), which is always. A packet that leaves at
    `now` arrives at

        max(arrival of the packet before, now + max(0, N(rtt / 2, jitter)))
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
        """`end` is the time of `clock` at which listening and sleeping raise `TrialOver`."""
        self._link = link
        self._half_s, self._jitter_s = rtt_ms / 2e3, jitter_ms / 1e3
        self._end = end
        self._chance = chance
        self._clock, self._sleep = clock, sleep
        self._up: deque[tuple[float, Message]] = deque()
        self._down: deque[tuple[float, AnyMessage]] = deque()
        self._last_up = self._last_down = 0.0
        self.bytes_up = self.bytes_down = 0
        self.late: list[tuple[float, float]] = []
        """When each sleep ended, by `clock`, and by how many seconds too late."""

    @property
    def state(self) -> LinkState:
        return self._link.state

    def send(self, message: Message) -> None:
        self._last_up = max(self._last_up, self._arrival())
        self._up.append((self._last_up, message))
        self._give()

    def receive(self, timeout: float) -> list[AnyMessage]:
        """Messages that arrive within `timeout` seconds. Raises `TrialOver`."""
        self._pass(self._clock() + timeout, listening=True)
        now, messages = self._clock(), []
        while self._down and self._down[0][0] <= now:
            messages.append(self._down.popleft()[1])
        return messages

    def sleep(self, seconds: float) -> None:
        """Sleep without listening; packets move meanwhile. Raises `TrialOver`."""
        end = self._clock() + seconds
        self._pass(end, listening=False)
        now = self._clock()
        self.late.append((now, now - end))

    def flush(self) -> None:
        """Send all packets that are under way at once."""
        while self._up:
            self._link.send(self._up.popleft()[1])

    def _arrival(self) -> float:
        delay_s = self._half_s
        if self._jitter_s:
            delay_s = max(0.0, self._chance.gauss(delay_s, self._jitter_s))
        return self._clock() + delay_s

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
        """Carry packets until that time or, when listening, until one has arrived."""
        self._take(0.0)
        while True:
            self._give()
            now = self._clock()
            if now >= self._end:
                raise TrialOver
            news = [self._down[0][0]] if listening and self._down else []
            if now >= min([until, *news]):
                return
            leaving = [self._up[0][0]] if self._up else []
            left = max(0.0, min([until, self._end, *news, *leaving]) - now)
            if left < 2 * TICK_S:
                self._sleep(left)
                left = 0.0
            self._take(max(0.0, left - TICK_S))
