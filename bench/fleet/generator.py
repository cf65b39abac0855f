"""The load generator of `bench.fleet.run`: starts the clouds and runs one trial after another."""

from __future__ import annotations

import random
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path

import zmq
from msgspec import UNSET

from bench.fleet.devices import FleetDevice, TrialPlan
from bench.fleet.figures import ProcessLoad, Trial, Window, machine_load, served
from bench.fleet.profile import FleetProfile, answerable, mix
from bench.fleet.settings import FleetSettings
from bench.lab.methods import CLOUD, EDGESPEC, LOCKSTEP
from bench.lab.processes import CloudProcess, cloud_process, cpu_seconds, resident_mb
from bench.lab.recording import Recording, draft_of
from edge_runtime.drafters import open_drafter
from edge_runtime.handshake import DeviceIdentity
from edgespec.config import EdgeSettings
from edgespec.manifest import Bundle
from engines.drafters.base import Drafter
from engines.machine.energy.meter import EnergyMeter
from engines.machine.energy.sensors import find

ONE_ROW = ("--max-batch-rows", "1")
SETTLE_S = 1.0
"""Seconds between the time when all devices have come and the window."""
SWITCH_S = 0.0005
"""Interval after which the interpreter lets another thread run."""
SPARE_SOCKETS_COUNT = 64

During = Callable[[TrialPlan], AbstractContextManager[object]]
"""A context that is entered before the devices of a trial come, and left when they are gone."""


def serving(method: str) -> str:
    """The cloud that serves a method: one runs a row at a time, the other as many as pay."""
    return LOCKSTEP if method == LOCKSTEP else CLOUD


@contextmanager
def clouds(
    bundle: Bundle, draft: str, settings: FleetSettings, traces: Mapping[str, Path]
) -> Iterator[dict[str, CloudProcess]]:
    """One cloud for each trace, by the same name. `draft`: profile of the cloud's draft."""
    sessions = settings.most_devices + settings.real
    with ExitStack() as stack:
        started = {}
        for name, trace in traces.items():
            options = ["--max-sessions", str(sessions), "--trace", str(trace)]
            if name == LOCKSTEP:
                options += ONE_ROW
            elif draft:
                options += ["--draft", draft]
            process = cloud_process(bundle.folder, *options, *settings.cloud_options)
            started[name] = stack.enter_context(process)
        yield started


@contextmanager
def quick_switches() -> Iterator[None]:
    """Let threads switch sooner, so that a device runs as soon as its sleep is over."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(SWITCH_S)
    try:
        yield
    finally:
        sys.setswitchinterval(before)


@dataclass(frozen=True)
class TimedTrial:
    """A trial and when it was measured."""

    window: Window
    trial: Trial


@dataclass
class Generator:
    """Runs trials, one after the other."""

    bundle: Bundle
    profile: FleetProfile
    recording: Recording
    settings: FleetSettings
    clouds: dict[str, CloudProcess] = field(default_factory=dict)
    """Clouds by the names that `serving` returns."""

    def __post_init__(self) -> None:
        ends = self.bundle.manifest.text.end_ids
        self._kinds = mix(self.profile.kinds, self.settings.most_devices)
        self._prompts = {
            kind.name: answerable(self.recording, kind, ends) for kind in self.profile.kinds
        }
        self._real: list[Drafter] = []
        self._sensors = find(self.settings.energy) if self.settings.energy else None

    @property
    def trial_seconds(self) -> float:
        return self.profile.arrive_s + SETTLE_S + self.settings.seconds

    def measure(self, name: str, count: int, during: During = nullcontext) -> TimedTrial:
        """One fleet of `count` devices with the method `name`.

        Raises `EdgespecError` if an answer is wrong.
        """
        meter = EnergyMeter(self._sensors) if self._sensors else None
        with zmq.Context() as context:
            sockets = 2 * (count + self.settings.real) + SPARE_SOCKETS_COUNT
            context.set(zmq.MAX_SOCKETS, sockets)
            plan = self._plan(name, context)
            devices = [self._device(number, plan) for number in range(count)]
            real = [
                replace(self._device(count + number, plan), drafter=drafter)
                for number, drafter in enumerate(self._real_drafts(name))
            ]
            with during(plan):
                load = _live([*devices, *real], plan, self.clouds[serving(name)].pid, meter)
        window = Window(plan.opens, plan.closes)
        service, real_service = served(devices, window), served(real, window) if real else UNSET
        tokens_per_s = service.tokens_per_s + (real_service.tokens_per_s if real_service else 0.0)
        tokens = round(tokens_per_s * window.seconds)
        trial = Trial(
            method=name,
            real=real_service,
            energy=meter.energy(tokens) if meter else UNSET,
            **vars(service),
            **vars(machine_load(load, devices, window)),
        )
        return TimedTrial(window, trial)

    def _plan(self, name: str, context: zmq.Context[zmq.Socket[bytes]]) -> TrialPlan:
        method = self.settings.chosen[name]
        begins = time.monotonic()
        opens = begins + self.profile.arrive_s + SETTLE_S
        settings = EdgeSettings(
            connect=self.clouds[serving(name)].endpoint,
            mode=method.mode,
            tactics=method.tactics,
            draft_length=self.settings.draft_length,
        )
        hello = DeviceIdentity.of(self.bundle, "bench").hello
        return TrialPlan(
            method,
            settings,
            DeviceIdentity(hello, self.bundle.manifest.text.end_ids),
            self.recording,
            context,
            begins,
            opens,
            opens + self.settings.seconds,
        )

    def _device(self, number: int, plan: TrialPlan) -> FleetDevice:
        kind = self._kinds[number % len(self._kinds)]
        chance = random.Random(f"arrival {number}")
        return FleetDevice(
            number,
            kind,
            plan,
            self._prompts[kind.name],
            plan.begins + chance.uniform(0.0, self.profile.arrive_s),
            kind.target_rate or self.settings.target_rate or self.profile.target_rate,
        )

    def _real_drafts(self, method: str) -> Sequence[Drafter]:
        """Drafts of edgespec's real devices, loaded once and kept for the next trial."""
        if method != EDGESPEC:
            return []
        if not self._real:
            draft = draft_of(self.recording, self.bundle)
            self._real = [open_drafter(self.bundle, draft, 1) for _ in range(self.settings.real)]
        return self._real


def _live(
    devices: Sequence[FleetDevice], plan: TrialPlan, pid: int, meter: EnergyMeter | None
) -> ProcessLoad:
    """Run all devices until the trial closes; `meter` measures its window.

    `pid` is the cloud's process. Raises what any device raised.
    """
    with ThreadPoolExecutor(len(devices)) as pool:
        lives = [pool.submit(device.run) for device in devices]
        time.sleep(max(0.0, plan.opens - time.monotonic()))
        with meter or nullcontext():
            before = time.process_time(), cpu_seconds(pid), time.monotonic()
            time.sleep(max(0.0, plan.closes - time.monotonic()))
            after = time.process_time(), cpu_seconds(pid), time.monotonic()
        memory_mb = resident_mb(pid)
    for life in lives:
        life.result()
    generator_s, cloud_s, seconds = (b - a for a, b in zip(before, after, strict=True))
    return ProcessLoad(generator_s / seconds, cloud_s / seconds, memory_mb)
