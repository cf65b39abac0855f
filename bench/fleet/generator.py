"""Load generator of `bench.fleet.run`: starts the clouds and runs one fleet after the other."""

from __future__ import annotations

import math
import random
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import zmq

from bench.fleet.devices import Cell, FleetDevice
from bench.fleet.figures import Load, Window, machine_load, served
from bench.fleet.profile import FleetProfile, answerable, mix
from bench.lab.methods import CLOUD, EDGESPEC, METHODS, Method
from bench.lab.plots import require_matplotlib
from bench.lab.processes import cloud_process, cpu_seconds, resident_mb
from bench.lab.recording import Recording
from edge_runtime.drafters import open_drafter
from edge_runtime.handshake import DeviceIdentity
from edgespec.config import EdgeSettings, Mode
from edgespec.errors import UsageError
from edgespec.manifest import Bundle
from engines.drafters.base import Drafter
from engines.machine.energy.meter import EnergyMeter
from engines.machine.energy.sensors import find

CLOUD_DRAFT, LOCKSTEP = "cloud-draft", "lockstep"
FLEET_METHODS = (CLOUD, CLOUD_DRAFT, LOCKSTEP, EDGESPEC)
ONE_ROW = ["--max-batch-rows", "1"]
SETTLE = 1.0
"""Seconds between the time when all devices have come and the window."""
SWITCH = 0.0005
"""Seconds after which a device's thread lets another one run."""


@dataclass(frozen=True)
class FleetSettings:
    profile: Path | None = None
    """None: the built-in one."""
    recording: Path | None = None
    """None: what the profile says."""
    devices: tuple[int, ...] = ()
    """Fleets to measure; empty: the capacity of each method is searched for."""
    most: int = 256
    """Devices, beyond which capacity is not searched for."""
    target_rate: float = 0.0
    """Tokens a second; 0: what the profile says."""
    seconds: float = 20.0
    """Of a window."""
    limit_seconds: float = 840.0
    """After which the search begins nothing new."""
    methods: tuple[str, ...] = FLEET_METHODS
    mode: Mode = "auto"
    """Of ours."""
    draft_length: int = 4
    """Of lockstep."""
    real: int = 0
    """Devices beside ours that draft with the bundle's real draft, in this process."""
    cloud_options: tuple[str, ...] = ()
    """More options of `edgespec cloud-run`."""
    plot: Path | None = None
    """Folder."""
    energy: Path | None = None
    """Root of the file tree that this machine's energy is read from; None: not measured."""

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

    @property
    def chosen(self) -> dict[str, Method]:
        named = METHODS | {EDGESPEC: replace(METHODS[EDGESPEC], mode=self.mode)}
        return {name: named[name] for name in self.methods}


def serving(method: str) -> str:
    """Which cloud serves a method: one takes a row at a time, the other all that pay."""
    return LOCKSTEP if method == LOCKSTEP else CLOUD


@contextmanager
def clouds(
    bundle: Bundle, settings: FleetSettings, traces: dict[str, Path]
) -> Iterator[dict[str, tuple[str, int]]]:
    """One for each trace; yields endpoint and process id by name."""
    most = max((settings.most, *settings.devices)) + settings.real
    with ExitStack() as stack:
        clouds = {}
        for name, trace in traces.items():
            options = ["--max-sessions", str(most), "--trace", str(trace)]
            if name == LOCKSTEP:
                options += ONE_ROW
            elif bundle.manifest.default_draft:
                options += ["--draft", bundle.manifest.default_draft]
            process = cloud_process(bundle.folder, *options, *settings.cloud_options)
            clouds[name] = stack.enter_context(process)
        yield clouds


@contextmanager
def nimble() -> Iterator[None]:
    """Threads hand over sooner, so that those whose sleep is over run."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(SWITCH)
    try:
        yield
    finally:
        sys.setswitchinterval(before)


@dataclass(frozen=True)
class Measured:
    """One method with so many devices."""

    method: str
    window: Window
    figures: dict[str, Any]


@dataclass
class Generator:
    """Lets fleets live, one after the other."""

    bundle: Bundle
    profile: FleetProfile
    recording: Recording
    settings: FleetSettings
    clouds: dict[str, tuple[str, int]] = field(default_factory=dict)
    """Endpoint and process id, by name."""

    def __post_init__(self) -> None:
        ends = self.bundle.manifest.text.end_ids
        self._kinds = mix(self.profile.kinds, max((self.settings.most, *self.settings.devices)))
        self._prompts = {
            kind.name: answerable(self.recording, kind, ends) for kind in self.profile.kinds
        }
        self._real: list[Drafter] = []
        self._sensors = find(self.settings.energy) if self.settings.energy else None

    @property
    def cell_seconds(self) -> float:
        return self.profile.arrive_s + SETTLE + self.settings.seconds

    def measure(
        self,
        name: str,
        count: int,
        beside: Callable[[Cell], AbstractContextManager[object]] = nullcontext,
    ) -> Measured:
        """One fleet of `count` devices. Raises `EdgespecError` if an answer is wrong. What is
        `beside` them is entered before they come, and left when they are gone."""
        meter = EnergyMeter(self._sensors) if self._sensors else None
        with zmq.Context() as context:
            context.set(zmq.MAX_SOCKETS, 2 * (count + self.settings.real) + 64)
            cell = self._cell(name, context)
            devices = [self._device(number, cell) for number in range(count)]
            real = [
                replace(self._device(count + number, cell), drafter=drafter)
                for number, drafter in enumerate(self._real_drafts(name))
            ]
            with beside(cell):
                load = self._live([*devices, *real], cell, self.clouds[serving(name)][1], meter)
        window = Window(cell.opens, cell.closes)
        figures = served(devices, window) | machine_load(load, devices, window)
        if real:
            figures["real"] = served(real, window)
        if meter:
            everyone = [figures, *([figures["real"]] if real else [])]
            tokens = round(sum(each["tokens_per_s"] for each in everyone) * window.seconds)
            figures["energy"] = meter.energy(tokens).figures()
        return Measured(name, window, {"method": name} | figures)

    def _cell(self, name: str, context: zmq.Context[zmq.Socket[bytes]]) -> Cell:
        method = self.settings.chosen[name]
        begin = time.monotonic()
        opens = begin + self.profile.arrive_s + SETTLE
        return Cell(
            method,
            EdgeSettings(
                connect=self.clouds[serving(name)][0],
                mode=method.mode,
                tactics=method.tactics,
                draft_length=self.settings.draft_length,
            ),
            DeviceIdentity.of(self.bundle, "bench").hello,
            self.bundle.manifest.text.end_ids,
            self.recording,
            context,
            begin,
            opens,
            opens + self.settings.seconds,
        )

    def _device(self, number: int, cell: Cell) -> FleetDevice:
        kind = self._kinds[number % len(self._kinds)]
        chance = random.Random(f"arrival {number}")
        return FleetDevice(
            number,
            kind,
            cell,
            self._prompts[kind.name],
            cell.begin + chance.uniform(0.0, self.profile.arrive_s),
            kind.target_rate or self.settings.target_rate or self.profile.target_rate,
        )

    def _real_drafts(self, method: str) -> Sequence[Drafter]:
        """Loaded once, and kept for the next fleet."""
        if method == EDGESPEC and not self._real:
            self._real = [open_drafter(self.bundle, "", 1) for _ in range(self.settings.real)]
        return self._real if method == EDGESPEC else []

    @staticmethod
    def _live(
        devices: Sequence[FleetDevice], cell: Cell, pid: int, meter: EnergyMeter | None
    ) -> Load:
        """Until the cell closes; `meter` measures its window. Raises what any device raised."""
        with ThreadPoolExecutor(len(devices)) as pool:
            lives = [pool.submit(device.run) for device in devices]
            time.sleep(max(0.0, cell.opens - time.monotonic()))
            with meter or nullcontext():
                before = time.process_time(), cpu_seconds(pid), time.monotonic()
                time.sleep(max(0.0, cell.closes - time.monotonic()))
                after = time.process_time(), cpu_seconds(pid), time.monotonic()
            memory = resident_mb(pid)
        for life in lives:
            life.result()
        generator, cloud, seconds = (b - a for a, b in zip(before, after, strict=True))
        return Load(generator / seconds, cloud / seconds, memory)
