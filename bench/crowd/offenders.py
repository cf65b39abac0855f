"""Devices that behave badly, each in a process of its own next to a fleet of polite ones.

greedy      opens many sessions over one link, as fast as they end; drafts as long as possible,
            every id with a confidence of 1; every other session drafts wrong ids
vanishing   opens a session, disappears in the middle of its draft, and returns as another device
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

import msgspec

from bench.crowd.scene import SECRET, TOGETHER_S, RawSocket, Scene, steadily
from edgespec.errors import EdgespecError
from edgespec.protocol import Close, Draft, Ping, Resume, Verdict, pack
from edgespec.transport import DealerLink

PACKETS_PER_S = 150.0
"""Rate of a device that streams drafts."""
FLOOD_FACTOR = 100
"""Rate of the flood, relative to such a device."""
DEAF_PACKETS_PER_S = 800.0
"""Within the rate that a device may send."""
GREEDY_SESSIONS_COUNT = 8
GREEDY_DRAFT_TOKENS = 32
LIFE_S = 0.5
"""Length of each connection of the vanishing device."""
PING_S = 1.0
END_TIMEOUT_S = 10.0
"""Time in which an offender's process must end."""

Counts = dict[str, float]
"""Counts that an offender reports."""


@contextmanager
def offender(kind: str, scene: Scene, did: Counts) -> Iterator[None]:
    """Run an offender while the block runs; its counts are then added to `did`.

    Raises `EdgespecError` if it fails.
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
        if not here.poll(max(0.0, scene.closes - time.monotonic()) + END_TIMEOUT_S):
            raise EdgespecError(f"the device {kind!r} did not end")
        try:
            did |= here.recv()
        except EOFError:
            raise EdgespecError(f"the device {kind!r} failed") from None
        process.join(END_TIMEOUT_S)
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


@dataclass
class _GreedySession:
    """One session of the greedy device."""

    number: int
    length: int
    truthful: bool
    round: int = 0


def greedy(scene: Scene) -> Counts:
    chance, link = random.Random(0), DealerLink(scene.endpoint)
    link.send(scene.hello)
    writing: dict[int, _GreedySession] = {}
    tokens, asked, pinged = 0, 0, time.monotonic()

    def begin(*, truthful: bool) -> None:
        nonlocal asked
        number, session = chance.randrange(len(scene.prompts)), chance.getrandbits(62)
        writing[session] = _GreedySession(number, len(scene.prompts[number]), truthful)
        link.send(scene.opening(session, number))
        asked += 1

    for number in range(GREEDY_SESSIONS_COUNT):
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
        if time.monotonic() - pinged > PING_S:
            pinged = time.monotonic()
            link.send(Ping(0))
    for session in writing:
        link.send(Close(session, SECRET))
    link.receive(TOGETHER_S)  # what was under way
    link.close()
    return {"sessions": asked, "tokens": tokens}


def _certain(scene: Scene, session: int, writing: _GreedySession) -> Draft | None:
    """A draft of the greatest length, every id with a confidence of 1; None at the end."""
    done = writing.length - len(scene.prompts[writing.number])
    ids = scene.answers[writing.number][done:][:GREEDY_DRAFT_TOKENS]
    if not ids:
        return None
    if not writing.truthful:
        ids = [token ^ 1 for token in ids]
    writing.round += 1
    return Draft(session, writing.round, 0, writing.length, ids, b"\xff" * len(ids))


def vanishing(scene: Scene) -> Counts:
    chance, lives = random.Random(0), 0
    while not scene.over:
        socket, session = RawSocket(scene), chance.getrandbits(62)
        number = chance.randrange(len(scene.prompts))
        socket.send(scene.opening(session, number))
        base, answer = len(scene.prompts[number]), scene.answers[number]
        end = min(time.monotonic() + LIFE_S, scene.closes)
        for place, token in enumerate(answer):
            if time.monotonic() >= end:
                break
            socket.send(Draft(session, 1, 0 if not place else 1, base + place, [token], b"\x80"))
            time.sleep(1 / PACKETS_PER_S)
        socket.close()
        lives += 1
    return {"lives": lives}


def deaf(scene: Scene) -> Counts:
    socket = RawSocket(scene, RCVHWM=1, RCVBUF=4096)
    longest = max(range(len(scene.prompts)), key=lambda number: len(scene.answers[number]))
    session = random.Random("deaf").getrandbits(62)
    socket.send(scene.opening(session, longest, drafting=False))
    steadily(
        DEAF_PACKETS_PER_S,
        scene.closes,
        lambda: socket.send(Resume(session, SECRET, 0)),
        lambda: None,
    )
    socket.close()
    return {"sent": socket.sent}


def flood(scene: Scene) -> Counts:
    socket, session = RawSocket(scene), random.Random("flood").getrandbits(62)
    socket.send(scene.opening(session, 0))
    packet = pack(Draft(session, 1, 0, len(scene.prompts[0]), scene.answers[0][:8], b"\xff" * 8))
    steadily(FLOOD_FACTOR * PACKETS_PER_S, scene.closes, lambda: socket.put(packet), socket.drain)
    socket.close()
    return {"sent": socket.sent, "kept back": socket.dropped}


def garbage(scene: Scene) -> Counts:
    socket, chance = RawSocket(scene), random.Random(0)
    steadily(
        PACKETS_PER_S, scene.closes, lambda: socket.put([chance.randbytes(48)]), socket.drain
    )  # fmt: skip
    socket.close()
    return {"sent": socket.sent, "replies": socket.read}


OFFENDERS: dict[str, Callable[[Scene], Counts]] = {
    "greedy": greedy,
    "deaf": deaf,
    "flood": flood,
    "garbage": garbage,
    "vanishing": vanishing,
}
