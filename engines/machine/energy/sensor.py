"""What every sensor of energy is read through."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal

Kind = Literal["power", "counter"]


@dataclass(frozen=True)
class Sensor:
    name: str
    """As people know it: INA3221, PMIC, RAPL, NVML."""
    covers: str
    """What its figure includes, as in `CPU package`."""
    kind: Kind
    """Whether `read` gives watts, to be sampled, or joules since some moment, to be subtracted."""
    rails: tuple[str, ...]
    """Those that add up to the figure."""
    read: Callable[[], Mapping[str, float]]
    """Watts or joules by rail. A rail that cannot be read now is missing; raises nothing."""
    every: float
    """Seconds between two samples. A counter is looked at too, before it can wrap twice."""
    most_watts: float
    """Of a rail: beyond this a reading is refused."""
    inside: tuple[str, ...] = ()
    """Rails that are part of others: shown, not added."""
    wraps: Mapping[str, float] = field(default_factory=dict)
    """Joules after which a counter begins again at 0, by rail."""
    partial: bool = True
    """Whether the rest of the machine is missing in its figure."""
    leaves_out: str = ""
    """What runs on other rails, where that is known."""


Found = Sensor | str
"""A sensor; or, where one is there that cannot be read, the sentence that says why."""
