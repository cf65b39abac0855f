"""Devices that behave badly, each in a process of its own beside a fleet of polite ones.

greedy      many sessions over one link, as fast as they come; drafts as long as they may be,
            every id claimed to be certain; every other session drafts what is wrong
vanishing   opens a session, is gone in the middle of its draft, and comes again as another
deaf        asks for everything again and again, and never reads
flood       sends a hundred times as many packets as a device does
garbage     sends as many packets as a device does, and none is a message
"""

from __future__ import annotations

import multiprocessing
import os
import random
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection
from typing import Any

import msgspec
import zmq

from edgespec.errors import EdgespecError
from edgespec.protocol import (
    SECRET_BYTES,
    Close,
    Draft,
    Hello,
    Message,
    Open,
    Ping,
    Resume,
    Terms,
    Verdict,
    pack,
)
from edgespec.sampling import Sampling
from edgespec.transport import DealerLink

SECRET = bytes(SECRET_BYTES)

PACKETS = 150.0
"""A second; what a device sends that streams."""
FLOOD = 100
"""Times that."""
ASKING = 800.0
"""Packets a second of the deaf one: within what a device may send."""
SESSIONS = 8
"""Of the greedy one."""
LONG = 32
"""Ids of its drafts."""
LIVES = 0.5
"""Seconds of each life of the vanishing one."""
PING = 1.0
AT_ONCE = 0.002
"""Seconds; packets that are due within so long are sent together."""
LAST_WORDS = 10.0
"""Seconds that its process has to end."""


@dataclass(frozen=True)
class Scene:
    """What an offender knows. It acts until `closes`, by `time.monotonic()`."""

    endpoint: str
    hello: Hello
    prompts: list[list[int]]
    answers: list[list[int]]
    """What the target says to each."""
    end_ids: list[int]
    closes: float
    core: int

    @property
    def over(self) -> bool:
        return time.monotonic() >= self.closes

    def opening(self, session: int, number: int, *, drafting: bool = True) -> Open:
        """The recorded prompt of that number, and all of its answer."""
        prompt, most = self.prompts[number], len(self.answers[number])
        terms = Terms(drafting=drafting)
        return Open(
            session, SECRET, len(prompt), most, Sampling(), self.end_ids, terms, list(prompt)
        )


@contextmanager
def offender(kind: str, scene: Scene, did: dict[str, Any]) -> Iterator[None]:
    """Acts while the block runs; `did` is then filled with what it did.

    Raises `EdgespecError` if it could not.
    """
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    named = msgspec.structs.replace(scene.hello, device=kind)
    acting = replace(scene, hello=named)
    process = context.Process(target=_act, args=(kind, acting, there), daemon=True)
    process.start()
    there.close()
    try:
        yield
        if not here.poll(max(0.0, scene.closes - time.monotonic()) + LAST_WORDS):
            raise EdgespecError(f"the device {kind!r} did not end")
        try:
            did |= here.recv()
        except EOFError:
            raise EdgespecError(f"the device {kind!r} failed") from None
        process.join(LAST_WORDS)
    finally:
        process.terminate()
        process.join()
        here.close()


def _act(kind: str, scene: Scene, report: Connection) -> None:
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {scene.core})
    began = time.monotonic(), time.process_time()
    did = OFFENDERS[kind](scene)
    seconds = max(time.monotonic() - began[0], 1e-9)
    report.send(did | {"busy": (time.process_time() - began[1]) / seconds})


class Raw:
    """A socket without the care that a link takes."""

    def __init__(self, scene: Scene, **options: int) -> None:
        self._context = zmq.Context()
        self._socket = self._context.socket(zmq.DEALER)
        for name, value in {"LINGER": 0, "SNDHWM": 1000, **options}.items():
            self._socket.setsockopt(getattr(zmq, name), value)
        self._socket.connect(scene.endpoint)
        self.sent = self.stuck = self.read = 0
        self.say(scene.hello)

    def say(self, message: Message) -> None:
        self.put(pack(message))

    def put(self, packet: list[bytes]) -> None:
        """Drops it where the socket takes no more."""
        try:
            self._socket.send_multipart(packet, zmq.NOBLOCK)
            self.sent += 1
        except zmq.Again:
            self.stuck += 1

    def drain(self) -> None:
        while self._socket.poll(0):
            self._socket.recv_multipart()
            self.read += 1

    def close(self) -> None:
        self._socket.close(0)
        self._context.term()


def _steadily(rate: float, end: float, act: Callable[[], None], rest: Callable[[], None]) -> None:
    """So many acts a second, until then; in between it rests."""
    began, done = time.monotonic(), 0
    while (now := time.monotonic()) < end:
        owed = int((now - began) * rate) - done
        for _ in range(owed):
            act()
        done += owed
        rest()
        time.sleep(max(AT_ONCE, min(1 / rate, end - now)))


@dataclass
class _Writing:
    """One session of the greedy one."""

    number: int
    length: int
    truthful: bool
    round: int = 0


def greedy(scene: Scene) -> dict[str, Any]:
    chance, link = random.Random(0), DealerLink(scene.endpoint)
    link.send(scene.hello)
    writing: dict[int, _Writing] = {}
    tokens, asked, pinged = 0, 0, time.monotonic()

    def begin(*, truthful: bool) -> None:
        nonlocal asked
        number, session = chance.randrange(len(scene.prompts)), chance.getrandbits(62)
        writing[session] = _Writing(number, len(scene.prompts[number]), truthful)
        link.send(scene.opening(session, number))
        asked += 1

    for number in range(SESSIONS):
        begin(truthful=number % 2 == 0)
    while not scene.over:
        for message in link.receive(0.1):
            mine = writing.get(getattr(message, "session", 0))
            if mine is None or not isinstance(message, Verdict):
                continue
            tokens += max(0, message.base + len(message.tokens) - mine.length)
            mine.length = max(mine.length, message.base + len(message.tokens))
            if message.finish:
                del writing[message.session]
                link.send(Close(message.session, SECRET))
                begin(truthful=mine.truthful)
            elif (draft := _certain(scene, message.session, mine)) is not None:
                link.send(draft)
        if time.monotonic() - pinged > PING:
            pinged = time.monotonic()
            link.send(Ping(0))
    for session in writing:
        link.send(Close(session, SECRET))
    link.receive(AT_ONCE)  # what was under way
    link.close()
    return {"sessions": asked, "tokens": tokens}


def _certain(scene: Scene, session: int, writing: _Writing) -> Draft | None:
    """As many ids as a draft may have, each claimed to be certain."""
    done = writing.length - len(scene.prompts[writing.number])
    ids = scene.answers[writing.number][done:][:LONG]
    if not ids:
        return None
    if not writing.truthful:
        ids = [token ^ 1 for token in ids]
    writing.round += 1
    return Draft(session, writing.round, 0, writing.length, ids, b"\xff" * len(ids))


def vanishing(scene: Scene) -> dict[str, Any]:
    chance, lives = random.Random(0), 0
    while not scene.over:
        socket, session = Raw(scene), chance.getrandbits(62)
        number = chance.randrange(len(scene.prompts))
        socket.say(scene.opening(session, number))
        base, answer = len(scene.prompts[number]), scene.answers[number]
        end = min(time.monotonic() + LIVES, scene.closes)
        for place, token in enumerate(answer):
            if time.monotonic() >= end:
                break
            socket.say(Draft(session, 1, 0 if not place else 1, base + place, [token], b"\x80"))
            time.sleep(1 / PACKETS)
        socket.close()
        lives += 1
    return {"lives": lives}


def deaf(scene: Scene) -> dict[str, Any]:
    socket = Raw(scene, RCVHWM=1, RCVBUF=4096)
    longest = max(range(len(scene.prompts)), key=lambda number: len(scene.answers[number]))
    session = random.Random("deaf").getrandbits(62)
    socket.say(scene.opening(session, longest, drafting=False))
    _steadily(ASKING, scene.closes, lambda: socket.say(Resume(session, SECRET, 0)), lambda: None)
    socket.close()
    return {"sent": socket.sent}


def flood(scene: Scene) -> dict[str, Any]:
    socket, session = Raw(scene), random.Random("flood").getrandbits(62)
    socket.say(scene.opening(session, 0))
    packet = pack(Draft(session, 1, 0, len(scene.prompts[0]), scene.answers[0][:8], b"\xff" * 8))
    _steadily(FLOOD * PACKETS, scene.closes, lambda: socket.put(packet), socket.drain)
    socket.close()
    return {"sent": socket.sent, "kept back": socket.stuck}


def garbage(scene: Scene) -> dict[str, Any]:
    socket, chance = Raw(scene), random.Random(0)
    _steadily(
        PACKETS, scene.closes, lambda: socket.put([chance.randbytes(48)]), socket.drain
    )  # fmt: skip
    socket.close()
    return {"sent": socket.sent, "replies": socket.read}


OFFENDERS: dict[str, Callable[[Scene], dict[str, Any]]] = {
    "greedy": greedy,
    "deaf": deaf,
    "flood": flood,
    "garbage": garbage,
    "vanishing": vanishing,
}
