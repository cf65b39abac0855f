"""Knowledge of an offender, and the socket that it uses."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import zmq

from edgespec.protocol import SECRET_BYTES, Hello, Message, Open, Terms, pack
from edgespec.sampling import Sampling

SECRET = bytes(SECRET_BYTES)
"""Secret of every session of these benches."""
TOGETHER_S = 0.002
"""Packets that are due within this time are sent together."""
SEND_QUEUE_PACKETS = 1000


@dataclass(frozen=True)
class Scene:
    """Knowledge of an offender, which acts until `closes`, by `time.monotonic()`."""

    endpoint: str
    hello: Hello
    prompts: list[list[int]]
    answers: list[list[int]]
    """The target's answer to each prompt."""
    end_ids: list[int]
    closes: float
    core: int

    @property
    def over(self) -> bool:
        return time.monotonic() >= self.closes

    def opening(self, session: int, number: int, *, drafting: bool = True) -> Open:
        """A request for the answer to the recorded prompt of that number, in full length."""
        prompt, most = self.prompts[number], len(self.answers[number])
        terms = Terms(drafting=drafting)
        return Open(
            session, SECRET, len(prompt), most, Sampling(), self.end_ids, terms, list(prompt)
        )


class RawSocket:
    """A socket without the queues and checks of a link."""

    def __init__(self, scene: Scene, **options: int) -> None:
        self._context = zmq.Context()
        self._socket = self._context.socket(zmq.DEALER)
        for name, value in {"LINGER": 0, "SNDHWM": SEND_QUEUE_PACKETS, **options}.items():
            self._socket.setsockopt(getattr(zmq, name), value)
        self._socket.connect(scene.endpoint)
        self.sent = self.dropped = self.read = 0
        self.send(scene.hello)

    def send(self, message: Message) -> None:
        self.put(pack(message))

    def put(self, packet: list[bytes]) -> None:
        """Send a packet, or drop it if the socket's queue is full."""
        try:
            self._socket.send_multipart(packet, zmq.NOBLOCK)
            self.sent += 1
        except zmq.Again:
            self.dropped += 1

    def drain(self) -> None:
        while self._socket.poll(0):
            self._socket.recv_multipart()
            self.read += 1

    def close(self) -> None:
        self._socket.close(0)
        self._context.term()


def steadily(rate: float, end: float, act: Callable[[], None], rest: Callable[[], None]) -> None:
    """Call `act` `rate` times a second until `end`, and `rest` in between."""
    began, done = time.monotonic(), 0
    while (now := time.monotonic()) < end:
        owed = int((now - began) * rate) - done
        for _ in range(owed):
            act()
        done += owed
        rest()
        time.sleep(max(TOGETHER_S, min(1 / rate, end - now)))
