"""The interface of all energy sensors."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal

Kind = Literal["power", "counter"]


@dataclass(frozen=True)
class Sensor:
    """A source of power or energy readings, with one or more rails."""

    name: str
    """Common name: INA3221, PMIC, RAPL, NVML."""
    covers: str
    """Part of the machine that the figure includes, such as `CPU package`."""
    kind: Kind
    """`power` if `read` returns watts; `counter` if it returns joules since some moment."""
    rails: tuple[str, ...]
    """Rails that add up to the figure."""
    read: Callable[[], Mapping[str, float]]
    """Returns watts or joules by rail, without the rails that cannot be read now. Raises nothing.
    """
    interval_s: float
    """Seconds between two samples. A counter must be read before it can wrap twice."""
    max_watts: float
    """Largest credible power of a rail; higher readings are refused."""
    inside: tuple[str, ...] = ()
    """Rails that are part of other rails: shown, but not added."""
    wrap_joules: Mapping[str, float] = field(default_factory=dict)
    """Joules after which a rail's counter restarts at 0."""
    partial: bool = True
    """True if the figure does not include the rest of the machine."""
    leaves_out: str = ""
    """Parts that run on other rails, if known."""


Found = Sensor | str
"""A sensor, or the reason why a sensor that is present cannot be read."""
