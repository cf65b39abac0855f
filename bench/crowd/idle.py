"""Idle sessions: open connections whose users ask for nothing."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from bench.crowd.scene import SECRET
from edge_runtime.handshake import DeviceIdentity
from edgespec.errors import EdgespecError
from edgespec.manifest import Bundle
from edgespec.protocol import Close, Error, Hello, Open, Ping, Terms, Verdict
from edgespec.sampling import Sampling
from edgespec.transport import DealerLink

IDLE = Terms(decoding=False)
"""Terms of a session whose target waits for its device, and whose device waits for its user."""
PING_S = 1.0
OPEN_TIMEOUT_S = 120.0
"""Time in which all idle sessions must be open."""
POLL_S = 0.05
SAME_PROMPT_TOKENS = 12
ANSWER_TOKENS = 8


class Idler:
    """A device with an open session, whose user asks for nothing."""

    def __init__(self, endpoint: str, hello: Hello, opening: Open) -> None:
        self._link, self._opening = DealerLink(endpoint), opening
        self._link.send(hello)
        self._link.send(opening)
        self.open = False

    def listen(self) -> None:
        for message in self._link.receive(0.0):
            self.open = self.open or isinstance(message, Verdict)
            if isinstance(message, Error):
                raise EdgespecError(f"the cloud refused an idle session: {message.message}")

    def ping(self) -> None:
        self._link.send(Ping(0))
        self.listen()

    def close(self) -> None:
        self._link.send(Close(self._opening.session, SECRET))
        self._link.close()


@contextmanager
def idlers(bundle: Bundle, endpoint: str, count: int, length: int = 0) -> Iterator[None]:
    """`count` connections with one idle session each.

    Their prompts are the same, or different ones of `length` tokens if that is given.
    """
    hello, chance = DeviceIdentity.of(bundle, "idle").hello, random.Random(length)
    words = bundle.manifest.target.architecture.vocabulary
    same = [chance.randrange(3, words) for _ in range(SAME_PROMPT_TOKENS)]
    with ExitStack() as stack:
        idle = []
        for _ in range(count):
            prompt = [chance.randrange(3, words) for _ in range(length)] if length else same
            opening = idle_opening(chance.getrandbits(62), prompt)
            idle.append(Idler(endpoint, hello, opening))
            stack.callback(idle[-1].close)
        _until_open(idle)
        over = threading.Event()
        pinging = threading.Thread(target=_ping, args=(idle, over))
        pinging.start()
        try:
            yield
        finally:
            over.set()
            pinging.join()


def _until_open(idle: list[Idler]) -> None:
    end = time.monotonic() + OPEN_TIMEOUT_S
    while not all(each.open for each in idle):
        if time.monotonic() > end:
            raise EdgespecError(f"{len(idle)} sessions did not open within {OPEN_TIMEOUT_S:g} s")
        for each in idle:
            each.listen()
        time.sleep(POLL_S)


def _ping(idle: list[Idler], over: threading.Event) -> None:
    """Ping from all connections, spread evenly over time."""
    while not over.is_set():
        for each in idle:
            each.ping()
            if over.wait(PING_S / len(idle)):
                return


def idle_opening(session: int, prompt: list[int]) -> Open:
    return Open(session, SECRET, len(prompt), ANSWER_TOKENS, Sampling(), [], IDLE, prompt)
