"""Settings of `edgespec bench fleet`."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from pathlib import Path

from bench.lab.methods import CLOUD, CLOUD_DRAFT, EDGESPEC, LOCKSTEP, METHODS, Method
from bench.lab.plots import require_matplotlib
from edgespec.config import Mode
from edgespec.errors import UsageError

FLEET_METHODS = (CLOUD, CLOUD_DRAFT, LOCKSTEP, EDGESPEC)


@dataclass(frozen=True)
class FleetSettings:
    profile: Path | None = None
    """None: the built-in profile."""
    recording: Path | None = None
    """None: the profile's."""
    devices: tuple[int, ...] = ()
    """Sizes of the fleets to measure; empty: the capacity of each method is searched."""
    most: int = 256
    """Devices of the largest fleet that the search tries."""
    target_rate: float = 0.0
    """Tokens a second; 0: the profile's."""
    seconds: float = 20.0
    """Length of each trial's window."""
    limit_seconds: float = 840.0
    """Time after which the search starts no new trial."""
    methods: tuple[str, ...] = FLEET_METHODS
    mode: Mode = "auto"
    """Mode of edgespec's devices."""
    draft_length: int = 4
    """Tokens drafted in a round of lockstep."""
    real: int = 0
    """More devices, in this process, that draft with the bundle's real draft."""
    cloud_options: tuple[str, ...] = ()
    """More options of `edgespec cloud-run`."""
    plot: Path | None = None
    """Folder."""
    energy: Path | None = None
    """Root of the file tree that this machine's energy is read from; None: not measured."""

    @property
    def most_devices(self) -> int:
        """Devices of the largest fleet that may be measured, without the real ones."""
        return max((self.most, *self.devices))

    @property
    def chosen(self) -> dict[str, Method]:
        """The methods by name."""
        named = METHODS | {EDGESPEC: replace(METHODS[EDGESPEC], mode=self.mode)}
        return {name: named[name] for name in self.methods}

    def check(self) -> None:
        """Raises `UsageError` for what would fail only later."""
        for name in self.methods:
            if name not in FLEET_METHODS:
                there = ", ".join(FLEET_METHODS)
                raise UsageError(f"there is no method {name!r}; choose from: {there}")
        for name, value in (("--seconds", self.seconds), ("--limit-seconds", self.limit_seconds)):
            if not (math.isfinite(value) and value > 0):
                raise UsageError(f"{name} {value:g} is no time to measure for")
        if not (math.isfinite(self.target_rate) and self.target_rate >= 0):
            raise UsageError(
                f"--target-rate {self.target_rate:g} is no rate; write tokens a second"
            )
        require_matplotlib(self.plot)
