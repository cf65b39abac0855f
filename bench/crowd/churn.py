"""Thousands of short sessions, one after the other, and what is left of them in a cloud.

The cloud's loop and sockets are real, in a process of its own; its target is a toy, so that an
hour of coming and going takes a minute. Connections come and go too, every other one without a
word, and some sessions are closed in the middle.
"""

from __future__ import annotations

import random
import time
from typing import Any

from bench.crowd.cloud import tell
from bench.lab.processes import cores, pinned, resident_mb
from bench.lab.toy_cloud import ToyCloud, toy_cloud, toy_hello
from edgespec.config import CloudSettings
from edgespec.errors import EdgespecError
from edgespec.protocol import SECRET_BYTES, AnyMessage, Close, Error, Open, Terms, Verdict
from edgespec.sampling import Sampling
from edgespec.transport import DealerLink

SECRET = bytes(SECRET_BYTES)

ENGAGED = 32
"""Connections at a time, each with one session."""
LOYAL = 50
"""Sessions of a connection, before another one takes its place."""
PROMPT, ANSWER, WORDS = 12, 8, 50
"""Tokens, and the ids they are drawn from."""
BROKEN = 8
"""Of so many sessions one is closed in the middle."""
FIRST = 0.1
"""Of the sessions, after which the memory is looked at first."""
PATIENCE = 30.0
"""Seconds of silence after which something is wrong."""
KV_MEMORY = 64 << 20
"""Bytes; the toy's sessions need 2048 each."""


def churn(sessions: int) -> dict[str, Any]:
    """Memory and objects of the cloud after a tenth of so many sessions, and after all."""
    # What vanished must have left by the end, as it would have in an hour.
    settings = CloudSettings(bind="tcp://127.0.0.1:*", kv_memory=KV_MEMORY, idle_timeout=2.0)
    with toy_cloud(PROMPT + ANSWER, settings) as cloud, pinned(cores()[0]):
        began = time.monotonic()
        visitors = Visitors(cloud.endpoint)
        marks = []
        for goal in (max(1, int(FIRST * sessions)), sessions):
            tell(f"{goal} short sessions")
            visitors.until(goal)
            marks.append(_mark(cloud, visitors.ended))
        seconds = time.monotonic() - began
        visitors.leave()
    first, last = marks
    growth = last["memory_mb"] - first["memory_mb"]
    return {
        "growth_bytes": round(1e6 * growth),
        "growth_bytes_per_session": 1e6 * growth / max(last["sessions"] - first["sessions"], 1),
        "churn": {"seconds": seconds, "connections": visitors.connections, "marks": marks},
    }


def _mark(cloud: ToyCloud, ended: int) -> dict[str, Any]:
    kept = cloud.kept()
    return {
        "sessions": ended,
        "memory_mb": resident_mb(cloud.pid),
        "objects": kept.objects,
        "open_sessions": kept.sessions,
        "devices": kept.devices,
    }


class _Visitor:
    """A connection and its session."""

    def __init__(self, endpoint: str, name: str) -> None:
        self.link = DealerLink(endpoint)
        self.link.send(toy_hello(name))
        self.had = 0
        self.session = 0

    def ask(self, chance: random.Random) -> None:
        self.session = chance.getrandbits(62)
        prompt = [chance.randrange(WORDS) for _ in range(PROMPT)]
        terms = Terms(drafting=False)
        self.link.send(Open(self.session, SECRET, PROMPT, ANSWER, Sampling(), [], terms, prompt))
        self.had += 1


class Visitors:
    """Connections that ask for one short answer after another."""

    def __init__(self, endpoint: str) -> None:
        self.ended = self.connections = 0
        self._endpoint = endpoint
        self._chance = random.Random(0)
        self._visitors = [self._come() for _ in range(ENGAGED)]

    def _come(self) -> _Visitor:
        self.connections += 1
        visitor = _Visitor(self._endpoint, f"visitor {self.connections}")
        # Not all leave at once.
        visitor.had = self._chance.randrange(LOYAL) if self.connections <= ENGAGED else 0
        visitor.ask(self._chance)
        return visitor

    def until(self, ended: int) -> None:
        """Goes on until so many sessions have ended. Raises `EdgespecError` if nothing moves."""
        last = time.monotonic()
        while self.ended < ended:
            before = self.ended
            for place, visitor in enumerate(self._visitors):
                for message in visitor.link.receive(0.0):
                    self._take(place, message)
            if self.ended > before:
                last = time.monotonic()
            elif time.monotonic() - last > PATIENCE:
                raise EdgespecError(f"the cloud was silent after {self.ended} sessions")

    def _take(self, place: int, message: AnyMessage) -> None:
        visitor = self._visitors[place]
        if isinstance(message, Error):
            raise EdgespecError(f"the cloud refused a short session: {message.message}")
        if not isinstance(message, Verdict) or message.session != visitor.session:
            return
        broken = visitor.session % BROKEN == 0
        if not message.finish and not broken:
            return
        self.ended += 1
        if visitor.had >= LOYAL:
            if self.connections % 2:
                visitor.link.send(Close(visitor.session, SECRET))
            visitor.link.close()
            self._visitors[place] = self._come()
        else:
            visitor.link.send(Close(visitor.session, SECRET))
            visitor.ask(self._chance)

    def leave(self) -> None:
        for visitor in self._visitors:
            visitor.link.close()
