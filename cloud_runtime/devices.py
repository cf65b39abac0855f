"""Devices that send packets to the cloud: one record for each connection.

The number of records is bounded. A device that floods, sends garbage, vanishes or does not read
costs bounded memory and one log line a minute.

Pure: packets and their times in, records out.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal

from edgespec.policies import LinkLimits
from edgespec.protocol import Hello
from edgespec.transport import Fate

Trouble = Literal["gone", "unread", "flood", "garbage", "refused"]


@dataclass
class ConnectedDevice:
    """One connection, and what its Hello said about the device."""

    peer: bytes
    heard_at: float
    """Time of its last packet, in seconds of the cloud's clock."""
    key: bytes = b""
    """CURVE key (Z85) of the connection; empty where it is not encrypted."""
    name: str = ""
    drafter: str = ""
    hardware: str = ""
    greeted: bool = False
    """True after a valid Hello."""
    away: Fate | None = None
    """The reason why messages do not reach it; None: they do."""
    troubles: Counter[Trouble] = field(default_factory=Counter)
    """Packets by trouble."""
    limits: LinkLimits = LinkLimits()

    def __post_init__(self) -> None:
        self._reported_at: dict[Trouble, float] = {}

    def __str__(self) -> str:
        return self.name or f"without a name ({self.peer.hex()})"

    def trouble(self, kind: Trouble, now: float, *, quiet: bool = False) -> bool:
        """Counts a trouble; returns True if it should be logged, now or again."""
        self.troubles[kind] += 1
        reported_at = self._reported_at.get(kind)
        if quiet or (reported_at is not None and now - reported_at < self.limits.repeat_s):
            return False
        self._reported_at[kind] = now
        return True


class Devices:
    """Devices that sent a valid Hello, and strangers that did not.

    Each kind has its own bound; above it the record that was silent longest is removed. So
    strangers, however many, never displace a device.
    """

    def __init__(self, limits: LinkLimits = LinkLimits()) -> None:
        self._limits = limits
        self._known: dict[bytes, ConnectedDevice] = {}
        self._strangers: dict[bytes, ConnectedDevice] = {}

    def __iter__(self) -> Iterator[ConnectedDevice]:
        """Devices after their Hello, the longest silent first."""
        return iter(self._known.values())

    def __len__(self) -> int:
        return len(self._known)

    @property
    def strangers(self) -> int:
        """Connections without a valid Hello."""
        return len(self._strangers)

    def heard(self, peer: bytes, now: float) -> ConnectedDevice:
        """Returns the record of the sender of a packet, a new one for a stranger."""
        device = self._known.pop(peer, None) or self._strangers.pop(peer, None)
        device = device or ConnectedDevice(peer, now, limits=self._limits)
        device.heard_at = now
        return self._keep(device)

    def greet(self, device: ConnectedDevice, hello: Hello) -> None:
        """Records a valid Hello."""
        self._strangers.pop(device.peer, None)
        device.name, device.drafter, device.hardware = hello.device, hello.drafter, hello.hardware
        device.greeted = True
        self._keep(device)

    def get(self, peer: bytes) -> ConnectedDevice | None:
        return self._known.get(peer) or self._strangers.get(peer)

    def _keep(self, device: ConnectedDevice) -> ConnectedDevice:
        records = self._known if device.greeted else self._strangers
        records[device.peer] = device
        if len(records) > self._limits.known_devices:
            del records[next(iter(records))]
        return device
