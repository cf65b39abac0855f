"""Heat: temperatures, and whether a lack of cooling or of power has slowed the machine.

Temperatures are those of `/sys/class/thermal/thermal_zone*` (m°C), of the CPU's own hwmon
(`k10temp`, `coretemp`; AMD has no zone) and of GPUs. The highest counts.

What slows a machine is told in three ways, and each is asked at every look:

* **events**, counted since the start: Intel's `cpu*/thermal_throttle/*_throttle_count`; Jetson's
  `oc1_event_cnt` (under-voltage), `oc2_…` (average) and `oc3_…` (instantaneous over-current) of its
  hwmon `soctherm_oc` (Jetson Linux Developer Guide, "Over-Current Throttling");
* **states**, true now or not: NVML's reasons, bits 0 to 3 of the Raspberry Pi's `get_throttled`
  (Raspberry Pi documentation, "vcgencmd");
* **marks** that stay set: its bits 16 to 19, which say that it has happened since the start, or
  since they were cleared. The kernel's driver clears them when it looks
  (drivers/hwmon/raspberrypi-hwmon.c), every two seconds, so a mark that appears during a run is the
  run's.
"""

from __future__ import annotations

from collections.abc import Mapping, Set
from dataclasses import dataclass, field
from pathlib import Path

from engines.machine.energy.files import line, number
from engines.machine.energy.nvml import Nvml
from engines.machine.energy.pmic import Runner

EVERY = 2.0
"""Seconds between two looks."""
COLDEST, HOTTEST = -40.0, 150.0
"""°C, beyond which a reading is none."""
DUMMY = "PMIC-Die"
"""A zone of older Jetsons that always says 100 °C."""
OWN = ("k10temp", "coretemp")
PI = {0: "under-voltage", 1: "frequency capped", 2: "throttled", 3: "soft temperature limit"}
PI_FILE = "sys/devices/platform/soc*/soc*firmware/get_throttled"
"""`soc/soc:firmware`, or with the address of the node."""
STUCK = 16
"""How much higher the marks are than the states."""
OVER_CURRENT = {"oc1": "under-voltage", "oc2": "average over-current", "oc3": "over-current"}


@dataclass(frozen=True)
class Look:
    """What is told at one moment."""

    celsius: Mapping[str, float] = field(default_factory=dict)
    events: Mapping[str, int] = field(default_factory=dict)
    states: Set[str] = frozenset()
    marks: Set[str] = frozenset()
    told: bool = False
    """Whether anything would have told that the machine was slowed."""


class Thermometer:
    """Finds the files once, reads them at every look."""

    def __init__(self, root: Path, ask: Runner | None = None, nvml: Nvml | None = None) -> None:
        """`ask` is for a Raspberry Pi whose kernel shows no file."""
        self._ask, self._nvml = ask, nvml
        self._zones = _zones(root)
        self._events = [*_cpu_counters(root), *_over_currents(root)]
        self._pi = next(iter(sorted(root.glob(PI_FILE))), None)

    def look(self) -> Look:
        """Raises nothing."""
        celsius: dict[str, float] = {}
        for name, zone in self._zones:
            _warmest(celsius, name, number(zone))
        events: dict[str, int] = {}
        for name, counter in self._events:
            count = number(counter)
            if count is not None:
                events[name] = max(int(count), events.get(name, 0))
        bits = self._bits()
        states = {why for bit, why in PI.items() if (bits or 0) >> bit & 1}
        marks = {why for bit, why in PI.items() if (bits or 0) >> (bit + STUCK) & 1}
        told = bool(events) or bits is not None
        for name, degrees, slowed in self._gpus():
            told, states = told or slowed is not None, states | (slowed or set())
            if degrees is not None:
                celsius[name] = degrees
        return Look(celsius, events, states, marks, told)

    def _gpus(self) -> list[tuple[str, float | None, set[str] | None]]:
        nvml = self._nvml
        if nvml is None:
            return []
        return [(gpu.name, nvml.celsius(gpu), nvml.slowed(gpu)) for gpu in nvml.gpus]

    def _bits(self) -> int | None:
        """Of a Raspberry Pi: `50005` in a file, `throttled=0x50005` by its tool."""
        text = line(self._pi) if self._pi else None
        try:
            if text is None and self._ask is not None:
                text = self._ask("get_throttled").strip()
            return int(text.rpartition("=")[2], 16) if text else None
        except (OSError, ValueError):
            return None


@dataclass
class HeatTally:
    """What was told in one window."""

    highest: float | None = None
    hottest: str = ""
    first: Look | None = None
    last: Look | None = None
    states: set[str] = field(default_factory=set)

    def add(self, look: Look) -> None:
        self.first = self.first or look
        self.states |= look.states | (look.marks - (self.last or self.first).marks)
        self.last = look
        for name, degrees in look.celsius.items():
            if self.highest is None or degrees > self.highest:
                self.highest, self.hottest = degrees, name

    @property
    def now(self) -> float | None:
        """°C of the warmest at the last look."""
        return max(self.last.celsius.values(), default=None) if self.last else None

    @property
    def throttled(self) -> bool | None:
        """None: nothing here tells."""
        if self.last is None or not self.last.told:
            return None
        return bool(self.reasons)

    @property
    def reasons(self) -> dict[str, int]:
        """Why it was slowed in this window, and how often; 0: that is not counted."""
        if self.first is None or self.last is None:
            return {}
        before = self.first.events
        more = {name: count - before.get(name, count) for name, count in self.last.events.items()}
        counted = {name: times for name, times in more.items() if times > 0}
        return dict.fromkeys(sorted(self.states), 0) | counted

    @property
    def before(self) -> tuple[str, ...]:
        """Marks that stood already when it began: whether it happened again is not known."""
        return tuple(sorted(self.first.marks - self.states)) if self.first else ()


def _zones(root: Path) -> list[tuple[str, Path]]:
    zones = sorted((root / "sys/class/thermal").glob("thermal_zone*"))
    found = [(line(zone / "type") or zone.name, zone / "temp") for zone in zones]
    for chip in sorted((root / "sys/class/hwmon").glob("hwmon*")):
        name = line(chip / "name") or ""
        found += [(name, path) for path in sorted(chip.glob("temp*_input")) if name in OWN]
    return [(name, path) for name, path in found if name != DUMMY]


def _warmest(found: dict[str, float], name: str, thousandths: float | None) -> None:
    """Of sensors of one name."""
    degrees = HOTTEST + 1 if thousandths is None else thousandths / 1e3
    if COLDEST <= degrees <= HOTTEST:
        found[name] = max(degrees, found.get(name, COLDEST))


def _cpu_counters(root: Path) -> list[tuple[str, Path]]:
    """Of every CPU, of which the highest counts: those of one package count the same events."""
    place = "sys/devices/system/cpu/cpu*/thermal_throttle/{}_throttle_count"
    return [
        (f"CPU {what} too hot", path)
        for what in ("core", "package")
        for path in sorted(root.glob(place.format(what)))
    ]


def _over_currents(root: Path) -> list[tuple[str, Path]]:
    found = []
    for path in sorted((root / "sys/class/hwmon").glob("hwmon*/oc*_event_cnt")):
        place = path.name.partition("_")[0]
        if number(path.with_name(f"{place}_throt_en")) != 0:
            found.append((OVER_CURRENT.get(place, f"over-current {place}"), path))
    return found
