"""Quotas of devices, from a JSON file that gives them by name.

    {"default": {"sessions": 4}, "robot-7": {"sessions": 16, "tokens_per_day": 1000000}}

A device's name is that of its key file in the cloud's folder of clients; all other devices have the
default. Usage is counted by key, or by connection without keys, and starts anew with the cloud.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated

import msgspec

from cloud_runtime.devices import Budget, ConnectedDevice
from edgespec.errors import UsageError
from edgespec.protocol import MAX_DRAFT, MAX_PACKET

DEFAULT = "default"
DAY_S = 86_400.0
BURST_S = 8.0
"""Seconds of a rate that a device which paused may use at once."""
REMEMBERED_DEVICES_COUNT = 16_384
Amount = Annotated[int, msgspec.Meta(ge=0)]


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

    def __init__(self, quota: Quota, now: float) -> None:
        self.quota = quota
        self._bytes = _budget(quota.bytes_per_s, MAX_PACKET, now)
        self._ids = _budget(quota.drafted_ids_per_s, MAX_DRAFT, now)
        daily = quota.tokens_per_day
        self._tokens = Budget(daily / DAY_S, daily, now) if daily else None

    def take_bytes(self, size: int, now: float) -> bool:
        return self._bytes is None or self._bytes.take(now, size)

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
        self, quotas: Mapping[str, Quota] = {}, name_of: Callable[[bytes], str] = lambda _: ""
    ) -> None:
        """`name_of`: the listed name of a key (Z85), or an empty string."""
        self._quotas = quotas
        self._name_of = name_of
        self._unbounded = Usage(Quota(), 0.0)
        self._usage: dict[bytes, Usage] = {}

    def of(self, device: ConnectedDevice, now: float) -> Usage:
        return self.of_owner(device.key, device.peer, now)

    def of_owner(self, key: bytes, peer: bytes, now: float) -> Usage:
        """Usage of the device with this key, or with this connection if it has no key."""
        if not self._quotas:
            return self._unbounded
        usage = self._usage.get(key or peer)
        if usage is None:
            quota = self._quotas.get(self._name_of(key)) or self._quotas.get(DEFAULT, Quota())
            usage = self._usage[key or peer] = Usage(quota, now)
            if len(self._usage) > REMEMBERED_DEVICES_COUNT:
                del self._usage[next(iter(self._usage))]
        return usage


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
