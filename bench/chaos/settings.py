"""Settings of `bench.chaos.run`, of its clouds and of its devices."""

from __future__ import annotations

from dataclasses import dataclass

import msgspec

from edgespec.errors import UsageError

LEAST_MINUTES, MOST_MINUTES = 0.05, 24 * 60


@dataclass(frozen=True)
class ChaosSettings:
    minutes: float = 1.0
    seed: int = 0
    devices: int = 3
    """Devices of each world; there are two worlds, one without keys and one with."""
    answers: int = 2
    """Answers that a device asks for at once."""

    def check(self) -> None:
        """Raises `UsageError` for what would fail only later."""
        if not LEAST_MINUTES <= self.minutes <= MOST_MINUTES:
            raise UsageError(f"--minutes {self.minutes:g}: {LEAST_MINUTES} to {MOST_MINUTES}")


class CloudOptions(msgspec.Struct, frozen=True):
    """One start of a toy cloud; travels as JSON."""

    bind: str
    key: str = ""
    """File of the cloud's secret key; empty: no encryption."""
    clients: str = ""
    """Folder of the device keys."""
    max_sessions: int = 64
    kv_memory: int = 0
    """Bytes of the KV caches; 0: chosen by the cloud."""
    cloud_draft: bool = False
    hints: bool = True


class DeviceOptions(msgspec.Struct, frozen=True):
    """One start of a device; travels as JSON."""

    connect: str
    name: str
    seed: int
    answers: int
    server_key: str = ""
    key: str = ""
