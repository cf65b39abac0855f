"""Devices and a cloud in virtual time: the real loops, scheduler and policy. Models, link and clock
are replaced by recordings and measured times."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

from bench.lab.recording import LONGEST_TOKENS, Recording
from bench.lab.useless import UselessDrafter
from bench.simulation.drafters import SimulatedCloudDraft, SimulatedDrafter
from bench.simulation.engine import SimulatedEngine
from bench.simulation.link import SimulatedHub
from bench.simulation.script import END, Script, wrong_guess
from bench.simulation.stats import DeviceStats, FleetStats, SimulatedAnswer
from bench.simulation.times import Times
from bench.simulation.virtual_time import Process, World, run_alone
from cloud_runtime.costs import Speeds
from cloud_runtime.server import CloudLoop
from cloud_runtime.service import Identity, Service
from cloud_runtime.warmup import measure
from edge_runtime.handshake import DeviceIdentity
from edge_runtime.loop import EdgeLoop
from edge_runtime.observer import Observer
from edgespec.config import NO_DRAFTER, CloudSettings, EdgeSettings, Request
from edgespec.errors import EdgespecError
from edgespec.policies import SchedulerPolicy
from edgespec.protocol import VERSION, Hello
from edgespec.telemetry import AnswerStats
from engines.drafters.base import Drafter

TURN_S = 0.5
"""Longest time that the cloud waits for messages before it checks its clock."""
FIRST_SERIAL_ID = 3
"""Second token id of the first prompt; each further prompt takes the next id, so no two prompts
share a prefix."""


@dataclass(frozen=True)
class SimulatedDevice:
    """One device of a simulated fleet."""

    settings: EdgeSettings
    draft_ms: float
    """Draft step over one branch."""
    rtt_ms: float = 0.0
    batch: tuple[float, ...] = (1.0, 1.45, 1.62)
    """Times of a draft step over one, two, … branches, relative to one branch."""
    drafts: bool = True
    """True if the device has a draft."""
    useless: bool = False
    """True if its draft is never right."""
    think_seconds: float = 0.0
    """Mean pause between two answers; pauses follow an exponential distribution."""
    tokens: tuple[int, int] = (LONGEST_TOKENS, LONGEST_TOKENS)
    """Range from which the length of an answer is drawn uniformly; the recorded answer's length
    is the upper bound."""
    start: float = 0.0
    """Seconds after which the device connects."""

    def drafter(self, script: Script, process: Process) -> Drafter:
        def step_s(branches: int) -> float:
            return self.draft_ms / 1e3 * self.batch[min(branches, len(self.batch)) - 1]

        name = "draft" if self.drafts else NO_DRAFTER
        drafter = SimulatedDrafter(script, process, step_s, len(self.batch), name)
        return UselessDrafter(drafter, wrong_guess) if self.useless else drafter


@dataclass(frozen=True)
class _Question:
    number: int
    """Number of the recorded prompt."""
    request: Request
    wait: float = 0.0
    """Seconds before the request is sent."""


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
    """Simulates one device that answers the recorded prompts one after the other.

    `prompts` limits their number. `drafts`: True if the device has a draft; `useless`: True if that
    draft is never right. `explain` receives the device's decisions as sentences. Raises
    `EdgespecError` if an answer differs from the recorded one.
    """
    fleet = _Fleet(recording, times, CloudSettings(idle_timeout=1e9), seed=0)
    device = SimulatedDevice(settings, times.draft_ms, times.rtt_ms, times.batch, drafts, useless)
    numbers = range(len(recording.answers))[:prompts]
    questions = [fleet.question(number) for number in numbers]
    writing = fleet.add(device, questions, explain)
    fleet.world.run(writing)
    return [answer.stats for answer in fleet.devices[0].answers]


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
    """Simulates many devices on one cloud for `seconds` of virtual time.

    Each device answers recorded prompts drawn at random by `seed`. The statistics leave out the
    first `warm_up` seconds. `draft_ms`, `rtt_ms` and `batch` are taken from each device, not from
    `times`. The same arguments give the same figures. Raises `EdgespecError` if an answer differs
    from the recorded one.
    """
    fleet = _Fleet(recording, times, cloud, seed)
    for number, device in enumerate(devices):
        fleet.add(device, fleet.drawn(device, random.Random(f"{seed} {number}")))
    fleet.world.run(fleet.world.start(lambda process: process.wait(seconds)))
    return fleet.stats(warm_up, seconds)


class _Fleet:
    """One run: a world with a cloud and its devices."""

    def __init__(
        self, recording: Recording, times: Times, settings: CloudSettings, seed: int
    ) -> None:
        self.world = World()
        self.devices: list[DeviceStats] = []
        self._recording, self._times, self._script = recording, times, Script(recording, seed)
        self._serial_ids = itertools.count(FIRST_SERIAL_ID)
        self._engine = SimulatedEngine(self._script, times, settings.max_sessions)
        if settings.kv_memory:
            self._engine.limit(settings.kv_memory)
        self._cloud_draft = SimulatedCloudDraft(self._script, times)
        speeds = run_alone(lambda process: self._measure(process, settings.scheduler))
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

    def _measure(self, process: Process, policy: SchedulerPolicy) -> Speeds:
        """Measures step times as the cloud does before it accepts devices."""
        self._engine.process = self._cloud_draft.process = process
        drafter = self._cloud_draft if self._times.cloud_draft_ms else None
        hints, clock = bool(self._times.exits), lambda: process.world.now
        speeds = measure(self._engine, drafter, hints=hints, clock=clock, policy=policy)
        self._engine.steps.clear()
        self._cloud_draft.steps.clear()
        return speeds

    def _serve(self, process: Process) -> None:
        self._engine.process = self._cloud_draft.process = self._hub.process = process
        while True:
            self._loop.turn(TURN_S)

    def add(
        self,
        device: SimulatedDevice,
        questions: Iterable[_Question],
        explain: Callable[[str], None] | None = None,
    ) -> Process:
        """Starts a device that answers `questions` one after the other."""
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
        identity = DeviceIdentity(hello, [END], dict(enumerate(self._times.exits, 1)))
        loop = EdgeLoop.connect(
            link, drafter, identity, device.settings, Observer(explain), self._clock
        )
        for question in questions:
            process.sleep(question.wait)
            answer = loop.start(question.request)
            simulated = SimulatedAnswer(self.world.now, answer.stats)
            stats.answers.append(simulated)
            try:
                for piece in loop.write(answer):
                    simulated.times.append(piece.at)
                simulated.done = True
            finally:
                self._check(question, answer.state.answer, done=simulated.done)

    def question(self, number: int, tokens: int = LONGEST_TOKENS, wait: float = 0.0) -> _Question:
        """Recorded prompt `number` with an id of its own, so that the cloud holds no prefix."""
        first, _, *rest = self._script.prompt(number)
        length = len(self._script.ids(number, tokens))
        return _Question(number, Request((first, next(self._serial_ids), *rest), length), wait)

    def drawn(self, device: SimulatedDevice, chance: random.Random) -> Iterator[_Question]:
        """Random prompts without end."""
        wait = 0.0
        while True:
            number = chance.randrange(len(self._recording.answers))
            yield self.question(number, chance.randint(*device.tokens), wait)
            wait = chance.expovariate(1 / device.think_seconds) if device.think_seconds else 0.0

    def _check(self, question: _Question, written: list[int], *, done: bool) -> None:
        expected = self._script.ids(question.number, question.request.max_tokens)
        if written != expected[: None if done else len(written)]:
            raise EdgespecError(
                f"the simulated answer to prompt {question.number + 1} of {self._recording.pair} "
                "is not the recorded one: a bug in the loops or in their simulation"
            )

    def stats(self, since: float, until: float) -> FleetStats:
        return FleetStats(
            self.devices, self._engine.steps, self._cloud_draft.steps, self._hub.spent, since, until
        )  # fmt: skip
