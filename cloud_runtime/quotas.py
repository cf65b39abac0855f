"""What each device may use: the bounds of every link, and quotas from a JSON file by name.

    {"default": {"sessions": 4}, "robot-7": {"sessions": 16, "tokens_per_day": 1000000}}

A device's name is that of its key file in the cloud's folder of clients; all other devices have the
default. Usage is counted by key, for all its connections together, or by connection without keys.
It starts anew with the cloud.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated

import msgspec

from cloud_runtime.devices import ConnectedDevice
from edgespec.errors import UsageError
from edgespec.policies import LinkLimits
from edgespec.protocol import MAX_DRAFT, MAX_PACKET

DEFAULT = "default"
DAY_S = 86_400.0
BURST_S = 8.0
"""Seconds of a rate that a device which paused may use at once."""
REMEMBERED_DEVICES_COUNT = 16_384
Amount = Annotated[int, msgspec.Meta(ge=0)]


class Budget:
    """A token bucket of packets or of bytes."""

    def __init__(self, rate_per_s: float, burst: float, now: float) -> None:
        self._rate_per_s, self._burst = rate_per_s, burst
        self._left, self._at = burst, now

    def take(self, now: float, amount: float = 1.0) -> bool:
        """Takes `amount`; returns False, and takes nothing, if less is left."""
        self._refill(now)
        if self._left < amount:
            return False
        self._left -= amount
        return True

    def spend(self, now: float, amount: float) -> None:
        """Takes `amount`, also if less is left."""
        self._refill(now)
        self._left -= amount

    def wait_s(self, now: float) -> float:
        """Seconds until something is left; 0: something is."""
        self._refill(now)
        return max(0.0, (1.0 - self._left) / self._rate_per_s)

    def _refill(self, now: float) -> None:
        self._left = min(self._burst, self._left + max(0.0, now - self._at) * self._rate_per_s)
        self._at = now


class Quota(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Bounds of one device; 0: none of its own."""

    sessions: Amount = 0
    """Unfinished sessions; 0: the cloud's `sessions_per_device`."""
    bytes_per_s: Amount = 0
    """Bytes of its packets; more are dropped undecoded."""
    drafted_ids_per_s: Amount = 0
    """Draft ids to verify; the target decodes without further ones."""
    tokens_per_day: Amount = 0
    """Tokens that its ended sessions were opened with or wrote; at the bound new ones are refused,
    and running ones go on. It refills evenly over the day."""


class Usage:
    """What one device may still use."""

    def __init__(self, quota: Quota, limits: LinkLimits, now: float) -> None:
        self.quota = quota
        self._packets = Budget(limits.packets_per_s, limits.burst_packets, now)
        self._bytes = Budget(limits.bytes_per_s, limits.burst_bytes, now)
        self._quota_bytes = _budget(quota.bytes_per_s, MAX_PACKET, now)
        self._ids = _budget(quota.drafted_ids_per_s, MAX_DRAFT, now)
        daily = quota.tokens_per_day
        self._tokens = Budget(daily / DAY_S, daily, now) if daily else None

    def take_packet(self, size_bytes: int, now: float) -> bool:
        """Charges a packet; returns False if it must be dropped."""
        taken = self._packets.take(now) and self._bytes.take(now, size_bytes)
        return taken and (self._quota_bytes is None or self._quota_bytes.take(now, size_bytes))

    def take_reply(self, size_bytes: int, now: float) -> bool:
        """Charges a reply that costs as much as a packet of this size."""
        return self._bytes.take(now, size_bytes)

    def take_drafted_ids(self, ids: int, now: float) -> bool:
        return self._ids is None or self._ids.take(now, ids)

    def spend_tokens(self, tokens: int, now: float) -> None:
        """Counts the tokens of an ended session, also beyond the quota."""
        if self._tokens is not None:
            self._tokens.spend(now, tokens)

    def tokens_wait_s(self, now: float) -> float:
        """Seconds until a new session is within the tokens of a day; 0: it is."""
        return self._tokens.wait_s(now) if self._tokens is not None else 0.0


class Quotas:
    """The quota and usage of each device."""

    def __init__(
        self,
        quotas: Mapping[str, Quota] = {},
        name_of: Callable[[bytes], str] = lambda _: "",
        limits: LinkLimits = LinkLimits(),
    ) -> None:
        """`name_of`: the listed name of a key (Z85), or an empty string."""
        self._quotas = quotas
        self._name_of = name_of
        self._limits = limits
        self._usage: dict[bytes, Usage] = {}

    def of(self, device: ConnectedDevice, now: float) -> Usage:
        return self.of_owner(device.key, device.peer, now)

    def of_owner(self, key: bytes, peer: bytes, now: float) -> Usage:
        """Usage of the device with this key, or with this connection if it has no key."""
        owner = key or peer
        usage = self._usage.pop(owner, None) or self._new(key, now)
        self._usage[owner] = usage  # the last one used is the last one forgotten
        if len(self._usage) > REMEMBERED_DEVICES_COUNT:
            del self._usage[next(iter(self._usage))]
        return usage

    def _new(self, key: bytes, now: float) -> Usage:
        quota = self._quotas.get(self._name_of(key)) or self._quotas.get(DEFAULT, Quota())
        return Usage(quota, self._limits, now)


def read_quotas(path: Path) -> dict[str, Quota]:
    """The quotas of a file. Raises `UsageError`."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=dict[str, Quota])
    except OSError as error:
        raise UsageError(f"--device-quota {path} cannot be read: {error.strerror}") from error
    except msgspec.MsgspecError as error:
        raise UsageError(f"--device-quota {path} holds no quotas: {error}") from error


def _budget(rate_per_s: int, least: int, now: float) -> Budget | None:
    """A budget that takes at least one packet at once; None for a rate of 0."""
    return Budget(rate_per_s, max(BURST_S * rate_per_s, least), now) if rate_per_s else None
