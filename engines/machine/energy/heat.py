"""Heat: temperatures, and throttling for lack of cooling or power.

Temperatures come from `/sys/class/thermal/thermal_zone*` (m°C), the CPU's hwmon (`k10temp`,
`coretemp`; AMD has no zone) and the GPUs. The highest one counts.

Throttling is reported in three forms, and each is read every time:

* **Events** are counted since the start: Intel's `cpu*/thermal_throttle/*_throttle_count`; Jetson's
  `oc1_event_cnt` (under-voltage), `oc2_…` (average) and `oc3_…` (instantaneous over-current) of its
  hwmon `soctherm_oc` (Jetson Linux Developer Guide, "Over-Current Throttling").
* **States** are true now or not: NVML's reasons, and bits 0 to 3 of the Raspberry Pi's
  `get_throttled` (Raspberry Pi documentation, "vcgencmd").
* **Marks** stay set: bits 16 to 19 of `get_throttled` mean that a state occurred since the start or
  since the last clearing. The kernel's driver clears them when it reads them, every two seconds
  (drivers/hwmon/raspberrypi-hwmon.c), so a mark that appears during a run belongs to the run.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Set
from dataclasses import dataclass, field
from pathlib import Path

from engines.machine.energy.files import line, number
from engines.machine.energy.nvml import Nvml
from engines.machine.energy.pmic import Runner

INTERVAL_S = 2.0
"""Seconds between two readings."""
MIN_CELSIUS, MAX_CELSIUS = -40.0, 150.0
"""Range of credible temperatures."""
DUMMY_ZONE = "PMIC-Die"
"""A zone of older Jetsons that always reports 100 °C."""
CPU_CHIPS = ("k10temp", "coretemp")
"""Names of the hwmon devices of CPUs."""
PI_BITS = {0: "under-voltage", 1: "frequency capped", 2: "throttled", 3: "soft temperature limit"}
PI_FILE = "sys/devices/platform/soc*/soc*firmware/get_throttled"
"""Path with `soc/soc:firmware`, or with the address of the node."""
MARK_SHIFT_BITS = 16
"""Distance of a mark's bit from its state's bit."""
OVER_CURRENT = {"oc1": "under-voltage", "oc2": "average over-current", "oc3": "over-current"}


@dataclass(frozen=True)
class Look:
    """Readings of one moment."""

    celsius: Mapping[str, float] = field(default_factory=dict)
    events: Mapping[str, int] = field(default_factory=dict)
    states: Set[str] = frozenset()
    marks: Set[str] = frozenset()
    reports: bool = False
    """True if any source reports throttling."""


class Thermometer:
    """Reads temperatures and throttling. The files are searched once."""

    def __init__(self, root: Path, ask: Runner | None = None, nvml: Nvml | None = None) -> None:
        """`ask` runs `vcgencmd`, for a Raspberry Pi whose kernel has no file `get_throttled`."""
        self._ask, self._nvml = ask, nvml
        self._zones = _zones(root)
        self._events = [*_cpu_counters(root), *_over_currents(root)]
        self._pi = next(iter(sorted(root.glob(PI_FILE))), None)

    def look(self) -> Look:
        """Reads all sources. Raises nothing."""
        celsius: dict[str, float] = {}
        for name, zone in self._zones:
            _warmest(celsius, name, number(zone))
        events: dict[str, int] = {}
        for name, counter in self._events:
            count = number(counter)
            if count is not None:
                events[name] = max(int(count), events.get(name, 0))
        bits = self._bits()
        states = {why for bit, why in PI_BITS.items() if (bits or 0) >> bit & 1}
        marks = {why for bit, why in PI_BITS.items() if (bits or 0) >> (bit + MARK_SHIFT_BITS) & 1}
        reports = bool(events) or bits is not None
        for name, degrees, slowed in self._gpus():
            reports, states = reports or slowed is not None, states | (slowed or set())
            if degrees is not None:
                celsius[name] = degrees
        return Look(celsius, events, states, marks, reports)

    def _gpus(self) -> list[tuple[str, float | None, set[str] | None]]:
        """Returns name, °C and throttle reasons of each GPU; None for an unknown value."""
        nvml = self._nvml
        if nvml is None:
            return []
        return [(gpu.name, nvml.celsius(gpu), nvml.slowed(gpu)) for gpu in nvml.gpus]

    def _bits(self) -> int | None:
        """Returns a Raspberry Pi's bits: `50005` in its file, `throttled=0x50005` from its tool."""
        text = line(self._pi) if self._pi else None
        try:
            if text is None and self._ask is not None:
                text = self._ask("get_throttled").strip()
            return int(text.rpartition("=")[2], 16) if text else None
        except (OSError, ValueError):
            return None


@dataclass
class HeatTally:
    """Temperatures and throttling of one window."""

    highest: float | None = None
    """Highest temperature in °C."""
    hottest: str = ""
    """Name of its sensor."""
    first: Look | None = None
    last: Look | None = None
    states: set[str] = field(default_factory=set)

    def add(self, look: Look) -> None:
        """Adds the readings of one moment."""
        self.first = self.first or look
        self.states |= look.states | (look.marks - (self.last or self.first).marks)
        self.last = look
        for name, degrees in look.celsius.items():
            if self.highest is None or degrees > self.highest:
                self.highest, self.hottest = degrees, name

    @property
    def now(self) -> float | None:
        """Highest temperature of the last readings in °C."""
        return max(self.last.celsius.values(), default=None) if self.last else None

    @property
    def throttled(self) -> bool | None:
        """True if the machine was throttled; None if no source reports it."""
        if self.last is None or not self.last.reports:
            return None
        return bool(self.reasons)

    @property
    def reasons(self) -> dict[str, int]:
        """Reasons of throttling in this window, with their number; 0 if they are not counted."""
        if self.first is None or self.last is None:
            return {}
        before = self.first.events
        more = {name: count - before.get(name, count) for name, count in self.last.events.items()}
        counted = {name: times for name, times in more.items() if times > 0}
        return dict.fromkeys(sorted(self.states), 0) | counted

    @property
    def earlier_marks(self) -> tuple[str, ...]:
        """Marks from before the window. It is unknown if their states occurred again."""
        return tuple(sorted(self.first.marks - self.states)) if self.first else ()


def _zones(root: Path) -> list[tuple[str, Path]]:
    """Returns names and files of the temperatures."""
    zones = sorted((root / "sys/class/thermal").glob("thermal_zone*"))
    found = [(line(zone / "type") or zone.name, zone / "temp") for zone in zones]
    for chip in sorted((root / "sys/class/hwmon").glob("hwmon*")):
        name = line(chip / "name") or ""
        found += [(name, path) for path in sorted(chip.glob("temp*_input")) if name in CPU_CHIPS]
    return [(name, path) for name, path in found if name != DUMMY_ZONE]


def _warmest(found: dict[str, float], name: str, thousandths: float | None) -> None:
    """Keeps the highest credible temperature of a name; `thousandths` is in m°C."""
    degrees = math.inf if thousandths is None else thousandths / 1e3
    if MIN_CELSIUS <= degrees <= MAX_CELSIUS:
        found[name] = max(degrees, found.get(name, MIN_CELSIUS))


def _cpu_counters(root: Path) -> list[tuple[str, Path]]:
    """Returns the counters of every CPU. CPUs of a package count the same events, so the highest
    value of a name is used."""
    place = "sys/devices/system/cpu/cpu*/thermal_throttle/{}_throttle_count"
    return [
        (f"CPU {what} too hot", path)
        for what in ("core", "package")
        for path in sorted(root.glob(place.format(what)))
    ]


def _over_currents(root: Path) -> list[tuple[str, Path]]:
    """Returns the Jetson's event counters that are not switched off."""
    found = []
    for path in sorted((root / "sys/class/hwmon").glob("hwmon*/oc*_event_cnt")):
        place = path.name.partition("_")[0]
        if number(path.with_name(f"{place}_throt_en")) != 0:
            found.append((OVER_CURRENT.get(place, f"over-current {place}"), path))
    return found
