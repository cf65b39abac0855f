"""Readings become joules. Pure: told what was read, and when.

Power is integrated by the trapezoid between neighbouring samples of a rail, a counter is subtracted
from itself. Where a rail was not read, or what it said was refused, its time is missing and stays
so: the energy is then a lower bound, and the missing seconds are told.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from edgespec.energy_report import COMPLETE_SHARE
from engines.machine.energy.sensor import Sensor

GAP = 0.05
"""Seconds without a reading that are worth a sentence."""
SLACK = 1.0
"""Seconds of the highest power by which a counter may jump: NVML's is renewed some ten times a
second, RAPL's some thousand times."""


@dataclass
class RailTally:
    """One rail."""

    joules: float = 0.0
    seconds: float = 0.0
    """For which `joules` is known."""
    refused: int = 0
    """Readings that cannot be true."""
    last: tuple[float, float] | None = None
    """Time and value of the reading before; None after a gap."""


@dataclass
class SensorTally:
    """What a sensor has counted in one window."""

    sensor: Sensor
    samples: int = 0
    began: float = 0.0
    """The first sample."""
    ended: float = 0.0
    """The last one."""
    rails: dict[str, RailTally] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in (*self.sensor.rails, *self.sensor.inside):
            self.rails[name] = RailTally()

    def add(self, now: float, values: Mapping[str, float]) -> None:
        """A sample: watts or joules by rail at `now` seconds."""
        self.began = self.began if self.samples else now
        self.ended = now
        self.samples += 1
        for name, rail in self.rails.items():
            value = values.get(name)
            if value is not None and not self._credible(value):
                rail.refused += 1
                value = None
            if value is None:
                rail.last = None if self.sensor.kind == "power" else rail.last
                continue
            if rail.last is not None:
                self._count(name, rail, rail.last, (now, value))
            rail.last = (now, value)

    @property
    def told(self) -> bool:
        """Whether anything came of it."""
        return any(self.rails[name].seconds > 0 for name in self.sensor.rails)

    @property
    def missing(self) -> float:
        """Seconds without the rail that lacks most."""
        return max(self._missing(name) for name in self.sensor.rails)

    @property
    def faults(self) -> list[str]:
        """What went wrong, a sentence each."""
        said = []
        for name in self.sensor.rails:
            if (gap := self._missing(name)) > GAP:
                said.append(f"{name} ({self.sensor.name}) gave no reading for {gap:.1f} s")
            if refused := self.rails[name].refused:
                more = "s" * (refused > 1)
                said.append(
                    f"{refused} reading{more} of {name} ({self.sensor.name}) cannot be true"
                )
        return said

    def whole(self, rail: str) -> bool:
        """Whether it was read all the time."""
        return self._missing(rail) <= COMPLETE_SHARE * (self.ended - self.began)

    def _missing(self, rail: str) -> float:
        return self.ended - self.began - self.rails[rail].seconds

    def _credible(self, value: float) -> bool:
        most = self.sensor.most_watts if self.sensor.kind == "power" else math.inf
        return math.isfinite(value) and 0.0 <= value <= most

    def _count(
        self, name: str, rail: RailTally, before: tuple[float, float], after: tuple[float, float]
    ) -> None:
        seconds = after[0] - before[0]
        if self.sensor.kind == "power":
            rail.joules += seconds * (before[1] + after[1]) / 2
            rail.seconds += seconds
            return
        joules = after[1] - before[1]
        if joules < 0:
            joules += self.sensor.wraps.get(name, 0.0)
        if 0.0 <= joules <= self.sensor.most_watts * (seconds + SLACK):
            rail.joules += joules
            rail.seconds += seconds
        else:
            rail.refused += 1
