"""Device and cloud in one process and one thread, over real packets. For tests and benches.

A device that waits for a message runs turns of the cloud until there is one.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable

from edgespec.link_state import established
from edgespec.protocol import AnyMessage, Message, Packet, pack, unpack
from edgespec.transport import Hub

LONGEST_WAIT_TURNS = 1000
"""Turns of the cloud after which a waiting device gets no message."""


class LoopbackHub(Hub):
    """The cloud's end. Set `pump` to a function that runs one turn of the cloud."""

    def __init__(self) -> None:
        self.links: dict[bytes, LoopbackLink] = {}
        self.inbox: deque[tuple[bytes, Packet]] = deque()
        self.pump: Callable[[], None] = lambda: None

    def connect(self) -> LoopbackLink:
        peer = len(self.links).to_bytes(4, "big")
        self.links[peer] = LoopbackLink(self, peer)
        return self.links[peer]

    def send(self, peer: bytes, message: Message) -> None:
        if peer in self.links:
            self.links[peer].inbox.append(pack(message))

    def receive(self, timeout: float) -> list[tuple[bytes, Packet]]:
        del timeout
        packets = list(self.inbox)
        self.inbox.clear()
        return packets


class LoopbackLink:
    """A device's end."""

    def __init__(self, hub: LoopbackHub, peer: bytes) -> None:
        self._hub = hub
        self._peer = peer
        self.inbox: deque[Packet] = deque()
        self.bytes_up = self.bytes_down = 0
        self.state = established()
        self.skipped_s = 0.0
        """Waits without a message, which take no time here."""

    def clock(self) -> float:
        """Seconds as the device counts them: waits that were skipped have passed."""
        return time.monotonic() + self.skipped_s

    def send(self, message: Message) -> None:
        packet = pack(message)
        self.bytes_up += sum(map(len, packet))
        self.send_raw(packet)

    def send_raw(self, packet: Packet) -> None:
        self._hub.inbox.append((self._peer, packet))

    def receive(self, timeout: float) -> list[AnyMessage]:
        """Runs turns of the cloud until a message has come, or one turn if `timeout` is 0."""
        for turn in range(LONGEST_WAIT_TURNS):
            if self.inbox or (turn and not timeout):
                break
            self._hub.pump()
        packets = list(self.inbox)
        self.skipped_s += 0.0 if packets else timeout
        self.inbox.clear()
        self.bytes_down += sum(len(frame) for packet in packets for frame in packet)
        return [unpack(packet) for packet in packets]
