"""Measurement of energy and heat during a window."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import NamedTuple

from edgespec.energy_report import Energy
from engines.machine.energy import heat
from engines.machine.energy.heat import HeatTally
from engines.machine.energy.sensors import Sensors, coverage
from engines.machine.energy.tally import SensorTally


class Job(NamedTuple):
    """A sensor to be read repeatedly."""

    read: Callable[[], None]
    interval_s: float


class EnergyMeter:
    """Energy and heat of the `with` block.

    Every sensor is read at the start and at the end of the block, so that the window is complete,
    and in between by a thread at the sensor's interval. The thread ends with the block, also after
    an exception.
    """

    def __init__(self, sensors: Sensors, clock: Callable[[], float] = time.monotonic) -> None:
        self._sensors = sensors
        self._clock = clock
        self._tallies = [SensorTally(sensor) for sensor in sensors.energy]
        self._heat = HeatTally()
        self._began = self._ended = clock()
        self._reading = 0.0
        """Seconds spent on reading."""
        self._turn = threading.Lock()
        """Held while a sensor is read, which may be slow."""
        self._lock = threading.Lock()
        """Held while figures change."""
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="meter", daemon=True)
        self._jobs = [
            *(Job(self._sampling(tally), tally.sensor.interval_s) for tally in self._tallies),
            Job(self._read_heat, heat.INTERVAL_S),
        ]

    def __enter__(self) -> EnergyMeter:
        self._began = self._clock()
        self.sample()
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:  # fmt: skip
        self._over.set()
        self._thread.join()
        now = self._clock()
        self.sample()
        self._ended = now

    def sample(self) -> None:
        """Reads every sensor once."""
        for job in self._jobs:
            job.read()

    def _watch(self) -> None:
        due = [time.monotonic() + job.interval_s for job in self._jobs]
        while not self._over.wait(max(0.0, min(due) - time.monotonic())):
            now = time.monotonic()
            for number, job in enumerate(self._jobs):
                if due[number] <= now:
                    job.read()
                    due[number] = max(due[number] + job.interval_s, now)

    def _sampling(self, tally: SensorTally) -> Callable[[], None]:
        def sample() -> None:
            with self._turn:
                now = self._clock()
                values = tally.sensor.read()
                with self._lock:
                    tally.add(now, values)
                    self._note_reading(now)

        return sample

    def _read_heat(self) -> None:
        with self._turn:
            now = self._clock()
            look = self._sensors.heat.look()
            with self._lock:
                self._heat.add(look)
                self._note_reading(now)

    def _note_reading(self, began: float) -> None:
        """Moves the end of the window to `began` and counts the time that a reading took."""
        self._ended = began
        self._reading += self._clock() - began

    def energy(self, tokens: int = 0) -> Energy:
        """Returns the energy of the window so far, in which `tokens` tokens were committed."""
        with self._lock:
            known = [tally for tally in self._tallies if tally.measured]
            seconds = self._ended - self._began
            rails = {name: t.rails[name].joules for t in known for name in t.sensor.rails}
            inside = {
                name: tally.rails[name].joules
                for tally in known
                for name in tally.sensor.inside
                if tally.complete(name)
            }
            return Energy(
                joules=sum(rails.values()) if known else None,
                seconds=seconds,
                tokens=tokens,
                covers=coverage(tuple(tally.sensor for tally in known)),
                leaves_out=", ".join(t.sensor.leaves_out for t in known if t.sensor.leaves_out),
                unmeasured_seconds=max((tally.missing for tally in known), default=seconds),
                samples=sum(tally.samples for tally in known),
                reading_seconds=self._reading,
                rails=rails,
                inside=inside,
                why=[
                    *self._sensors.unread,
                    *(fault for tally in self._tallies for fault in tally.faults),
                ],
                celsius=self._heat.now,
                highest_celsius=self._heat.highest,
                hottest=self._heat.hottest,
                throttled=self._heat.throttled,
                throttling=self._heat.reasons,
                throttled_before=list(self._heat.earlier_marks),
            )
