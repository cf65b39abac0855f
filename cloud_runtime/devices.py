"""Who speaks to the cloud: a record for each connection, bounded in number and in what it may send.

Pure: told what came and when. A device that floods, sends garbage, vanishes or does not read costs
a bounded amount of memory and one log line a minute.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal

from edgespec.protocol import Hello
from edgespec.transport import Fate

PEERS = 4096
"""Connections remembered, and as many that never said hello; one that was forgotten is asked to
say hello again."""
RATE, BURST = 1000.0, 1000.0
"""Packets a second that a device may send, and at once after a rest. It streams some 500."""
REPEAT = 60.0
"""Seconds between two log lines about the same trouble with the same device."""

Trouble = Literal["gone", "unread", "flood", "garbage", "refused"]
WORDS: dict[Trouble, str] = {
    "gone": "has gone away",
    "unread": "does not read what it is sent",
    "flood": f"sends more than {RATE:g} packets a second; the rest is dropped",
    "garbage": "sends packets that are no message",
    "refused": "is refused",
}


class Budget:
    """A token bucket: `rate` a second, `burst` of them after a rest."""

    def __init__(self, rate: float, burst: float, now: float) -> None:
        self._rate, self._burst = rate, burst
        self._left, self._at = burst, now

    def take(self, now: float) -> bool:
        """Whether there is one more."""
        self._left = min(self._burst, self._left + max(0.0, now - self._at) * self._rate)
        self._at = now
        if self._left < 1.0:
            return False
        self._left -= 1.0
        return True


@dataclass
class ConnectedDevice:
    """One connection, and what its hello said about it."""

    peer: bytes
    heard: float
    """When it last said anything, in the cloud's seconds."""
    name: str = ""
    drafter: str = ""
    hardware: str = ""
    greeted: bool = False
    away: Fate | None = None
    """Why nothing reaches it."""
    troubles: Counter[Trouble] = field(default_factory=Counter)
    """Packets, by what was wrong with them."""

    def __post_init__(self) -> None:
        self.budget = Budget(RATE, BURST, self.heard)
        self._told: dict[Trouble, float] = {}

    def __str__(self) -> str:
        return self.name or f"without a name ({self.peer.hex()})"

    def trouble(self, kind: Trouble, now: float, *, quiet: bool = False) -> bool:
        """Counts it; whether that is worth saying, again or at all."""
        self.troubles[kind] += 1
        if quiet or now - self._told.get(kind, -REPEAT) < REPEAT:
            return False
        self._told[kind] = now
        return True


class Devices:
    """Devices that said hello and strangers that did not; of each the longest silent is forgotten
    first, so that no number of strangers makes the cloud forget a device."""

    def __init__(self, most: int = PEERS) -> None:
        self._most = most
        self._known: dict[bytes, ConnectedDevice] = {}
        self._strangers: dict[bytes, ConnectedDevice] = {}

    def __iter__(self) -> Iterator[ConnectedDevice]:
        """Those that said hello, the longest silent first."""
        return iter(self._known.values())

    def __len__(self) -> int:
        return len(self._known)

    @property
    def strangers(self) -> int:
        return len(self._strangers)

    def heard(self, peer: bytes, now: float) -> ConnectedDevice:
        """The record of whoever sent a packet, an empty one for a stranger."""
        device = self._known.pop(peer, None) or self._strangers.pop(peer, None)
        device = device or ConnectedDevice(peer, now)
        device.heard = now
        return self._keep(device)

    def greet(self, device: ConnectedDevice, hello: Hello) -> None:
        self._strangers.pop(device.peer, None)
        device.name, device.drafter, device.hardware = hello.device, hello.drafter, hello.hardware
        device.greeted = True
        self._keep(device)

    def get(self, peer: bytes) -> ConnectedDevice | None:
        return self._known.get(peer) or self._strangers.get(peer)

    def _keep(self, device: ConnectedDevice) -> ConnectedDevice:
        records = self._known if device.greeted else self._strangers
        records[device.peer] = device
        if len(records) > self._most:
            del records[next(iter(records))]
        return device
