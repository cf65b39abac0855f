"""Thousands of short sessions, one after the other, and the memory that they leave in use.

The cloud's loop and sockets are real, in a process of its own. Its target is a toy, so that an
hour of short sessions takes a minute. Connections come and go too, every other one without closing
its session, and some sessions are closed in the middle.
"""

from __future__ import annotations

import random
import time

from bench.crowd.cloud import tell
from bench.crowd.figures import Churn, ChurnPart, CloudState
from bench.crowd.scene import SECRET
from bench.lab.processes import cores, pinned, resident_mb
from bench.lab.toy_cloud import ToyCloud, toy_cloud, toy_hello
from edgespec.config import CloudSettings
from edgespec.errors import EdgespecError
from edgespec.protocol import AnyMessage, Close, Error, Open, Terms, Verdict
from edgespec.sampling import Sampling
from edgespec.transport import DealerLink

CONNECTIONS_COUNT = 32
"""Connections at a time, each with one session."""
CONNECTION_SESSIONS_COUNT = 50
"""Sessions of a connection before another one takes its place."""
PROMPT_TOKENS, ANSWER_TOKENS, VOCABULARY_TOKENS = 12, 8, 50
BROKEN = 8
"""One session in `BROKEN` is closed in the middle."""
FIRST_RATIO = 0.1
"""Share of the sessions after which the memory is first measured."""
SILENCE_S = 30.0
"""Time without an ended session after which the bench gives up."""
KV_MEMORY_BYTES = 64 << 20
"""The toy's sessions need 2048 bytes each."""
IDLE_TIMEOUT_S = 2.0
"""Short, so that sessions of vanished devices have ended when the memory is measured."""


def churn(sessions: int) -> ChurnPart:
    """Memory and objects of the cloud after a tenth of `sessions`, and after all of them."""
    settings = CloudSettings(
        bind="tcp://127.0.0.1:*", kv_memory=KV_MEMORY_BYTES, idle_timeout=IDLE_TIMEOUT_S
    )
    with toy_cloud(PROMPT_TOKENS + ANSWER_TOKENS, settings) as cloud, pinned(cores()[0]):
        began = time.monotonic()
        visitors = Visitors(cloud.endpoint)
        marks = []
        for goal in (max(1, int(FIRST_RATIO * sessions)), sessions):
            tell(f"{goal} short sessions")
            visitors.until(goal)
            marks.append(_state(cloud, visitors.ended))
        seconds = time.monotonic() - began
        visitors.leave()
    first, last = marks
    growth_bytes = 1e6 * (last.memory_mb - first.memory_mb)
    return ChurnPart(
        growth_bytes=round(growth_bytes),
        growth_bytes_per_session=growth_bytes / max(last.sessions - first.sessions, 1),
        churn=Churn(seconds=seconds, connections=visitors.connections, marks=marks),
    )


def _state(cloud: ToyCloud, ended: int) -> CloudState:
    kept = cloud.kept()
    return CloudState(
        sessions=ended,
        memory_mb=resident_mb(cloud.pid),
        objects=kept.objects,
        open_sessions=kept.sessions,
        devices=kept.devices,
    )


class _Visitor:
    """A connection and its session."""

    def __init__(self, endpoint: str, name: str) -> None:
        self.link = DealerLink(endpoint)
        self.link.send(toy_hello(name))
        self.had = 0
        self.session = 0

    def ask(self, chance: random.Random) -> None:
        self.session = chance.getrandbits(62)
        prompt = [chance.randrange(VOCABULARY_TOKENS) for _ in range(PROMPT_TOKENS)]
        terms = Terms(drafting=False)
        self.link.send(
            Open(self.session, SECRET, PROMPT_TOKENS, ANSWER_TOKENS, Sampling(), [], terms, prompt)
        )
        self.had += 1


class Visitors:
    """Connections that ask for one short answer after another."""

    def __init__(self, endpoint: str) -> None:
        self.ended = self.connections = 0
        self._endpoint = endpoint
        self._chance = random.Random(0)
        self._visitors = [self._come() for _ in range(CONNECTIONS_COUNT)]

    def _come(self) -> _Visitor:
        self.connections += 1
        visitor = _Visitor(self._endpoint, f"visitor {self.connections}")
        if self.connections <= CONNECTIONS_COUNT:  # the first ones do not all leave at once
            visitor.had = self._chance.randrange(CONNECTION_SESSIONS_COUNT)
        visitor.ask(self._chance)
        return visitor

    def until(self, ended: int) -> None:
        """Run until so many sessions have ended. Raises `EdgespecError` on silence."""
        last = time.monotonic()
        while self.ended < ended:
            before = self.ended
            for place, visitor in enumerate(self._visitors):
                for message in visitor.link.receive(0.0):
                    self._take(place, message)
            if self.ended > before:
                last = time.monotonic()
            elif time.monotonic() - last > SILENCE_S:
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
        if visitor.had >= CONNECTION_SESSIONS_COUNT:
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
