"""Devices and a cloud in virtual time: the real loops, scheduler and policy, with models, link and
clock replaced by recordings and measured times."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

from bench.lab.recording import LONGEST, Recording
from bench.simulation.link import SimulatedHub
from bench.simulation.models import (
    END,
    Script,
    SimulatedCloudDraft,
    SimulatedDrafter,
    SimulatedEngine,
    Times,
)
from bench.simulation.stats import Answered, DeviceStats, FleetStats
from bench.simulation.virtual_time import Process, World, alone
from cloud_runtime.costs import Speeds
from cloud_runtime.server import CloudLoop
from cloud_runtime.service import Identity, Service
from cloud_runtime.warmup import measure
from edge_runtime.loop import EdgeLoop, greet
from edgespec.config import NO_DRAFTER, CloudSettings, EdgeSettings, Request
from edgespec.errors import EdgespecError
from edgespec.protocol import VERSION, Hello
from edgespec.telemetry import AnswerStats

__all__ = ["Script", "SimulatedDevice", "Times", "simulate", "simulate_fleet"]
TURN = 0.5
"""Seconds that a cloud waits for news before it looks at its clock."""
FRESH = 3
"""Ids from here on tell prompts apart."""


@dataclass(frozen=True)
class SimulatedDevice:
    settings: EdgeSettings
    draft_ms: float
    """A step of its draft."""
    rtt_ms: float = 0.0
    batch: tuple[float, ...] = (1.0, 1.45, 1.62)
    """Times of a draft step over one, two, … texts, relative to one."""
    drafts: bool = True
    """Whether it has a draft."""
    useless: bool = False
    """With one that is never right."""
    think_seconds: float = 0.0
    """Between two answers, on average; drawn from an exponential distribution."""
    tokens: tuple[int, int] = (LONGEST, LONGEST)
    """Of an answer, drawn uniformly from this range; no more than the recorded one has."""
    start: float = 0.0
    """Seconds before its first word."""

    def drafter(self, script: Script, process: Process) -> SimulatedDrafter:
        def cost(texts: int) -> float:
            return self.draft_ms / 1e3 * self.batch[min(texts, len(self.batch)) - 1]

        name = "draft" if self.drafts else NO_DRAFTER
        return SimulatedDrafter(script, process, cost, len(self.batch), name, useless=self.useless)


@dataclass(frozen=True)
class _Question:
    number: int
    """Of the recorded prompt."""
    request: Request
    wait: float = 0.0
    """Seconds before it is asked."""


def simulate(
    recording: Recording,
    times: Times,
    settings: EdgeSettings,
    *,
    prompts: int | None = None,
    drafts: bool = True,
    useless: bool = False,
    explain: Callable[[str], None] | None = None,
) -> list[AnswerStats]:
    """The answers of one device to the recorded prompts, one after the other.

    `drafts`: whether the device has a draft; `useless`: one that is never right. Raises
    `EdgespecError` if an answer is not the recorded one.
    """
    fleet = _Fleet(recording, times, CloudSettings(idle_timeout=1e9), seed=0)
    device = SimulatedDevice(settings, times.draft_ms, times.rtt_ms, times.batch, drafts, useless)
    numbers = range(len(recording.answers))[:prompts]
    questions = [fleet.question(number) for number in numbers]
    writing = fleet.add(device, questions, explain)
    fleet.world.run(writing)
    return [answered.stats for answered in fleet.devices[0].answers]


def simulate_fleet(
    recording: Recording,
    times: Times,
    devices: Sequence[SimulatedDevice],
    *,
    cloud: CloudSettings,
    seconds: float,
    warm_up: float = 0.0,
    seed: int = 0,
) -> FleetStats:
    """Many devices on one cloud, each asking one recorded prompt after another, drawn by `seed`,
    until `seconds` have passed; what is said of the run leaves out its first `warm_up` seconds.

    Draft, round trip and batch of `times` are those of each device instead. The same arguments
    give the same figures. Raises `EdgespecError` if an answer is not the recorded one.
    """
    fleet = _Fleet(recording, times, cloud, seed)
    for number, device in enumerate(devices):
        fleet.add(device, fleet.drawn(device, random.Random(f"{seed} {number}")))
    fleet.world.run(fleet.world.start(lambda process: process.wait(seconds)))
    return fleet.stats(warm_up, seconds)


class _Fleet:
    """One run: a cloud, devices, and a world that both are in."""

    def __init__(
        self, recording: Recording, times: Times, settings: CloudSettings, seed: int
    ) -> None:
        self.world = World()
        self.devices: list[DeviceStats] = []
        self._recording, self._times, self._script = recording, times, Script(recording, seed)
        self._asked = itertools.count()
        self._engine = SimulatedEngine(self._script, times, settings.max_sessions)
        if settings.kv_memory:
            self._engine.limit(settings.kv_memory)
        self._cloud_draft = SimulatedCloudDraft(self._script, times)
        speeds = alone(self._measure)
        exits = tuple(range(1, len(times.exits) + 1))
        service = Service(Identity("t", "k", exits), self._engine, settings, speeds)
        self._hub = SimulatedHub(self.world, times.message_ms, times.cloud_message_ms)
        self._loop = CloudLoop(
            self._hub,
            service,
            self._engine,
            settings,
            self._clock,
            drafter=self._cloud_draft,
        )
        self.world.start(self._serve)

    def _clock(self) -> float:
        return self.world.now

    def _measure(self, process: Process) -> Speeds:
        """What the cloud learns before it listens."""
        self._engine.process = self._cloud_draft.process = process
        drafter = self._cloud_draft if self._times.cloud_draft_ms else None
        hints, clock = bool(self._times.exits), lambda: process.world.now
        speeds = measure(self._engine, drafter, hints=hints, clock=clock)
        self._engine.steps.clear()
        self._cloud_draft.steps.clear()
        return speeds

    def _serve(self, process: Process) -> None:
        self._engine.process = self._cloud_draft.process = self._hub.process = process
        while True:
            self._loop.turn(TURN)

    def add(
        self,
        device: SimulatedDevice,
        questions: Iterable[_Question],
        explain: Callable[[str], None] | None = None,
    ) -> Process:
        """A device that asks them one after the other."""
        stats = DeviceStats()
        self.devices.append(stats)
        return self.world.start(
            lambda process: self._write(process, device, stats, questions, explain)
        )

    def _write(
        self,
        process: Process,
        device: SimulatedDevice,
        stats: DeviceStats,
        questions: Iterable[_Question],
        explain: Callable[[str], None] | None,
    ) -> None:
        process.sleep(device.start)
        drafter = device.drafter(self._script, process)
        link = self._hub.link(process, device.rtt_ms)
        hello = Hello(VERSION, "t", "k", "simulated")
        welcome = greet(link, hello, device.settings, self._clock)
        loop = EdgeLoop(
            link, drafter, hello, welcome, [END], device.settings,
            exits=dict(enumerate(self._times.exits, 1)), explain=explain, clock=self._clock,
        )  # fmt: skip
        for question in questions:
            process.sleep(question.wait)
            answer = loop.start(question.request)
            answered = Answered(self.world.now, answer.stats)
            stats.answers.append(answered)
            try:
                for _ in loop.write(answer, question.request):
                    answered.times.append(self.world.now)
                answered.done = True
            finally:
                self._check(question, answer.state.answer, done=answered.done)

    def question(self, number: int, tokens: int = LONGEST, wait: float = 0.0) -> _Question:
        """A recorded prompt, made unlike all others so that the cloud knows nothing of it yet."""
        first, _, *rest = self._script.prompt(number)
        length = len(self._script.ids(number, tokens))
        return _Question(number, Request((first, FRESH + next(self._asked), *rest), length), wait)

    def drawn(self, device: SimulatedDevice, chance: random.Random) -> Iterator[_Question]:
        """Prompts without end."""
        wait = 0.0
        while True:
            number = chance.randrange(len(self._recording.answers))
            yield self.question(number, chance.randint(*device.tokens), wait)
            wait = chance.expovariate(1 / device.think_seconds) if device.think_seconds else 0.0

    def _check(self, question: _Question, written: list[int], *, done: bool) -> None:
        wanted = self._script.ids(question.number, question.request.max_tokens)
        if written != wanted[: None if done else len(written)]:
            raise EdgespecError(
                f"the simulated answer to prompt {question.number + 1} of {self._recording.pair} "
                "is not the recorded one: a bug in the loops or in their simulation"
            )

    def stats(self, since: float, until: float) -> FleetStats:
        return FleetStats(
            self.devices, self._engine.steps, self._cloud_draft.steps, self._hub.spent, since, until
        )  # fmt: skip
