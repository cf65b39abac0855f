"""Reads the sensors while something runs."""

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
    """Something that is looked at again and again."""

    look: Callable[[], None]
    every: float


class EnergyMeter:
    """Energy and heat of the `with` block.

    Every sensor is read as the block begins and as it ends, so that the window is whole, and in
    between by a thread, each at its own pace. The thread ends with the block, however that ends.
    """

    def __init__(self, sensors: Sensors, clock: Callable[[], float] = time.monotonic) -> None:
        self._sensors = sensors
        self._clock = clock
        self._tallies = [SensorTally(sensor) for sensor in sensors.energy]
        self._heat = HeatTally()
        self._began = self._ended = clock()
        self._reading = 0.0
        self._turn = threading.Lock()
        """Held while something is read, which may take its time."""
        self._lock = threading.Lock()
        """Held while figures change."""
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="meter", daemon=True)
        self._jobs = [
            *(Job(self._sampling(tally), tally.sensor.every) for tally in self._tallies),
            Job(self._feel, heat.EVERY),
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
        """Reads everything once."""
        for job in self._jobs:
            job.look()

    def _watch(self) -> None:
        due = [time.monotonic() + job.every for job in self._jobs]
        while not self._over.wait(max(0.0, min(due) - time.monotonic())):
            now = time.monotonic()
            for number, job in enumerate(self._jobs):
                if due[number] <= now:
                    job.look()
                    due[number] = max(due[number] + job.every, now)

    def _sampling(self, tally: SensorTally) -> Callable[[], None]:
        def sample() -> None:
            with self._turn:
                now = self._clock()
                values = tally.sensor.read()
                with self._lock:
                    tally.add(now, values)
                    self._looked(now)

        return sample

    def _feel(self) -> None:
        with self._turn:
            now = self._clock()
            look = self._sensors.heat.look()
            with self._lock:
                self._heat.add(look)
                self._looked(now)

    def _looked(self, began: float) -> None:
        self._ended = began
        self._reading += self._clock() - began

    def energy(self, tokens: int = 0) -> Energy:
        """Of the window, or of what has passed of it, in which so many tokens were committed."""
        with self._lock:
            known = [tally for tally in self._tallies if tally.told]
            seconds = self._ended - self._began
            rails = {name: t.rails[name].joules for t in known for name in t.sensor.rails}
            inside = {
                name: tally.rails[name].joules
                for tally in known
                for name in tally.sensor.inside
                if tally.whole(name)
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
                throttled_before=list(self._heat.before),
            )
