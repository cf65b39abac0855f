"""Sum of a sensor's readings in joules. Pure code that gets readings with their times.

Power is integrated with the trapezoidal rule between neighbouring samples of a rail; readings of a
counter are subtracted. The time without a credible reading of a rail counts as missing. The energy
is then a lower bound, and the missing seconds are reported.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from edgespec.energy_report import COMPLETE_SHARE
from engines.machine.energy.sensor import Sensor

REPORTED_GAP_S = 0.05
"""Missing time of a rail above which it is reported."""
COUNTER_SLACK_S = 1.0
"""Seconds of the largest power by which a counter may be ahead: NVML updates its counter about ten
times a second, RAPL about a thousand times."""


@dataclass
class RailTally:
    """Energy of one rail in a window."""

    joules: float = 0.0
    seconds: float = 0.0
    """Time for which `joules` is known."""
    refused: int = 0
    """Number of readings that are not credible."""
    last: tuple[float, float] | None = None
    """Time in seconds and value of the last reading; None after a gap."""


@dataclass
class SensorTally:
    """Energy of a sensor's rails in one window."""

    sensor: Sensor
    samples: int = 0
    began: float = 0.0
    """Time of the first sample in seconds."""
    ended: float = 0.0
    """Time of the last sample in seconds."""
    rails: dict[str, RailTally] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in (*self.sensor.rails, *self.sensor.inside):
            self.rails[name] = RailTally()

    def add(self, now: float, values: Mapping[str, float]) -> None:
        """Adds a sample: watts or joules by rail at `now` seconds."""
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
    def measured(self) -> bool:
        """True if the energy of any rail is known for some time."""
        return any(self.rails[name].seconds > 0 for name in self.sensor.rails)

    @property
    def missing(self) -> float:
        """Seconds without a reading of the rail that lacks most."""
        return max(self._missing(name) for name in self.sensor.rails)

    @property
    def faults(self) -> list[str]:
        """One sentence for each rail with missing time or refused readings."""
        faults = []
        for name in self.sensor.rails:
            if (gap := self._missing(name)) > REPORTED_GAP_S:
                faults.append(f"{name} ({self.sensor.name}) gave no reading for {gap:.1f} s")
            if refused := self.rails[name].refused:
                plural = "s" * (refused > 1)
                faults.append(
                    f"{refused} reading{plural} of {name} ({self.sensor.name}) cannot be true"
                )
        return faults

    def complete(self, rail: str) -> bool:
        """Return True if the rail was read during the whole window."""
        return self._missing(rail) <= COMPLETE_SHARE * (self.ended - self.began)

    def _missing(self, rail: str) -> float:
        return self.ended - self.began - self.rails[rail].seconds

    def _credible(self, value: float) -> bool:
        limit = self.sensor.max_watts if self.sensor.kind == "power" else math.inf
        return math.isfinite(value) and 0.0 <= value <= limit

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
            joules += self.sensor.wrap_joules.get(name, 0.0)
        if 0.0 <= joules <= self.sensor.max_watts * (seconds + COUNTER_SLACK_S):
            rail.joules += joules
            rail.seconds += seconds
        else:
            rail.refused += 1
