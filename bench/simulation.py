"""Device and cloud in virtual time: the real loops, scheduler and policy, with models, link and
clock replaced by recordings and measured times."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from bench.recording import Recording, Said
from bench.virtual_time import Process, World
from cloud_runtime.costs import StepCosts
from cloud_runtime.server import CloudLoop
from cloud_runtime.service import Identity, Service, Speeds
from edge_runtime.loop import EdgeLoop, greet
from edgespec.config import NO_DRAFTER, CloudSettings, EdgeSettings, Request
from edgespec.errors import EdgespecError
from edgespec.protocol import VERSION, AnyMessage, Hello, Message, Packet, pack, unpack
from edgespec.sampling import Sampling
from edgespec.telemetry import AnswerStats
from engines.base import Choices, Row, Step
from engines.drafting import Guess

VOCABULARY = 1 << 20
END = 1
WRONG = 7


@dataclass(frozen=True)
class Times:
    """Of one pair on its hardware; milliseconds."""

    target_ms: float
    """A step of one token."""
    token_ms: float
    """Each further token."""
    draft_ms: float
    """A draft step on the device."""
    beside_ms: float = 0.0
    """A draft step beside the target; 0: the cloud has no draft."""
    hint_ms: float = 0.0
    """What exit heads add to a step that asks them."""
    rtt_ms: float = 0.0
    batch: tuple[float, ...] = (1.0, 1.45, 1.62)
    """Times of a draft step over one, two, … texts, relative to one; as many as pay."""
    message_ms: float = 0.08
    """What a message costs each side."""
    segments: int = 3
    """Of a target without exit heads."""
    exits: tuple[float, ...] = ()
    """How often each exit head is right, one for each inner segment boundary; empty: none."""

    @property
    def layers(self) -> int:
        """Here a segment is a layer."""
        return len(self.exits) + 1 if self.exits else self.segments

    def step(self, tokens: int) -> float:
        """Seconds."""
        return (self.target_ms + self.token_ms * (tokens - 1)) / 1e3


class Script:
    """What target and draft say: the recorded answers, and noise off their path."""

    def __init__(self, recording: Recording, seed: int = 0) -> None:
        self._recording = recording
        self._seed = seed
        self._chance = random.Random(seed)
        self._sures = [said for answer in recording.answers for said in answer]

    def prompt(self, number: int) -> list[int]:
        """Ids that name the recorded prompt; the first says which."""
        return [100 + number] + [2] * max(1, self._recording.prompts[number] - 1)

    def answer(self, text: Sequence[int]) -> list[Said]:
        return self._recording.answers[text[0] - 100]

    def _place(self, text: Sequence[int]) -> int:
        return len(text) - max(2, self._recording.prompts[text[0] - 100])

    def target(self, text: Sequence[int], place: int) -> int:
        """The target's token at `place` of the answer, if what is before it is the answer."""
        answer = self.answer(text)
        return _id(answer[place].token) if place < len(answer) else END

    def hint(self, text: Sequence[int], place: int, layer: int, right: float) -> int:
        """What an exit head that is right that often says there: the same whenever it is asked."""
        draw = random.Random(f"{self._seed} {text[0]} {place} {layer}").random()
        return self.target(text, place) if draw < right else WRONG + 1 + layer

    def guess(self, text: Sequence[int]) -> Guess:
        answer, place = self.answer(text), self._place(text)
        said = text[len(text) - place :] if place else []
        if place < len(answer) and [_id(s.token) for s in answer[:place]] == list(said):
            here = answer[place]
            return Guess(_id(here.guess), here.sure, _id(here.other), here.other_sure)
        any_ = self._chance.choice(self._sures)
        return Guess(WRONG, any_.sure, WRONG + 1, any_.other_sure)


def _id(token: int) -> int:
    """Recorded ids, kept apart from those that mean something here."""
    return token + 1000


class SimulatedDrafter:
    """`useless`: as slow and as sure as the recorded one, and never right."""

    def __init__(
        self,
        script: Script,
        step_ms: float,
        batch: Sequence[float],
        name: str,
        *,
        useless: bool = False,
    ) -> None:
        self.name = name
        self._useless = useless
        self.batch = len(batch)
        self.process: Process | None = None
        self._script = script
        self._step, self._batch = step_ms / 1e3, batch

    def guess(self, texts: Sequence[Sequence[int]], sampling: Sampling) -> list[Guess | None]:
        del sampling
        assert self.process is not None
        self.process.sleep(self._step * self._batch[min(len(texts), len(self._batch)) - 1])
        guesses = (self._script.guess(text) for text in texts)
        if self._useless:
            return [guess._replace(token=WRONG, other=WRONG + 1) for guess in guesses]
        return list(guesses)

    def reset(self) -> None:
        pass


class SimulatedEngine:
    """The target: slots that remember nothing, since the script knows the answer."""

    vocabulary = VOCABULARY
    context = 4096

    def __init__(self, script: Script, times: Times, service: list[Service]) -> None:
        self.process: Process | None = None
        self._script, self._times, self._service = script, times, service
        self._slots = 0

    def open(self) -> int:
        self._slots += 1
        return self._slots

    def close(self, slot: int) -> None:
        pass

    def truncate(self, slot: int, length: int) -> None:
        pass

    def cached(self, slot: int) -> int:
        del slot
        return self.context

    def copy(self, source: int, target: int, start: int, end: int) -> None:
        pass

    def run(self, rows: Sequence[Row]) -> Iterator[Step]:
        assert self.process is not None
        seconds = self._times.step(sum(len(row.tokens) for row in rows))
        if any(row.hints for row in rows):
            seconds += self._times.hint_ms / 1e3
        layers = self._times.layers
        for layer in range(1, layers + 1):
            self.process.sleep(seconds / layers)
            final = layer == layers
            asked = [row.wanted > 0 and (final or row.hints) for row in rows]
            yield Step(
                layer,
                final,
                [
                    self._choices(row, layer) if ask else None
                    for row, ask in zip(rows, asked, strict=True)
                ],
            )

    def _choices(self, row: Row, layer: int) -> Choices:
        seat = next(s for s in self._service[0].seats if s.slot == row.slot)
        text, place = seat.state.tokens, len(seat.state.answer)
        places = range(place, place + row.wanted)
        if layer == self._times.layers:
            ids = [self._script.target(text, at) for at in places]
        else:
            right = self._times.exits[layer - 1]
            ids = [self._script.hint(text, at, layer, right) for at in places]
        said = np.array(ids)
        none = np.zeros((row.wanted, 1), np.float32)
        return Choices(said, said[:, None], none, none)


class SimulatedLink:
    """Both ends of a link between one device and the cloud."""

    def __init__(self, world: World, times: Times) -> None:
        self._world, self._times = world, times
        self.device: Process | None = None
        self.cloud: Process | None = None
        self.bytes_up = self.bytes_down = 0
        self._up: list[tuple[bytes, Packet]] = []
        self._down: list[AnyMessage] = []

    def send(self, message: Message) -> None:
        packet = pack(message)
        self.bytes_up += sum(map(len, packet))

        def arrive() -> None:
            self._up.append((b"device", packet))
            assert self.cloud is not None
            self.cloud.notify()

        self._world.at(self._world.now + self._times.rtt_ms / 2e3, arrive)
        self._pay(self.device)

    def receive(self, timeout: float) -> list[AnyMessage]:
        assert self.device is not None
        if not self._down and timeout:
            self.device.wait(timeout)
        messages, self._down = self._down, []
        self._pay(self.device, len(messages))
        return messages

    def reply(self, message: Message) -> None:
        packet = pack(message)
        self.bytes_down += sum(map(len, packet))

        def arrive() -> None:
            self._down.append(unpack(packet))
            assert self.device is not None
            self.device.notify()

        self._world.at(self._world.now + self._times.rtt_ms / 2e3, arrive)
        self._pay(self.cloud)

    def taken(self, timeout: float) -> list[tuple[bytes, Packet]]:
        assert self.cloud is not None
        if not self._up and timeout:
            self.cloud.wait(timeout)
        packets, self._up = self._up, []
        self._pay(self.cloud, len(packets))
        return packets

    def _pay(self, process: Process | None, messages: int = 1) -> None:
        if messages and self._times.message_ms:
            assert process is not None
            process.sleep(messages * self._times.message_ms / 1e3)


class _Hub:
    def __init__(self, link: SimulatedLink) -> None:
        self._link = link

    def send(self, peer: bytes, message: Message) -> None:
        del peer
        self._link.reply(message)

    def receive(self, timeout: float) -> list[tuple[bytes, Packet]]:
        return self._link.taken(timeout)


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
    """The answers to the recorded prompts, one after the other.

    `drafts`: whether the device has a draft; `useless`: one that is never right. Raises
    `EdgespecError` if an answer is not the recorded one.
    """
    world, script = World(), Script(recording)
    link = SimulatedLink(world, times)
    cloud, bind = _cloud(world, script, times, link)
    name = "draft" if drafts else NO_DRAFTER
    drafter = SimulatedDrafter(script, times.draft_ms, times.batch, name, useless=useless)
    answers: list[AnswerStats] = []

    def clock() -> float:
        return world.now

    def serve(process: Process) -> None:
        bind(process)
        while True:
            cloud.turn(0.5)

    def write(process: Process) -> None:
        link.device = drafter.process = process
        hello = Hello(VERSION, "t", "k", "simulated")
        welcome = greet(link, hello, settings, clock)
        loop = EdgeLoop(
            link, drafter, hello, welcome, [END], settings,
            exits=dict(enumerate(times.exits, 1)), explain=explain, clock=clock,
        )  # fmt: skip
        for number, said in list(enumerate(recording.answers))[:prompts]:
            request = Request(tuple(script.prompt(number)), len(said))
            answer = loop.start(request)
            for _ in loop.write(answer, request):
                pass
            if answer.state.answer != [_id(s.token) for s in said]:
                raise EdgespecError(
                    f"the simulated answer to prompt {number + 1} of {recording.pair} is not the "
                    "recorded one: a bug in the loops or in their simulation"
                )
            answers.append(answer.stats)

    world.start(serve)
    world.run(world.start(write))
    return answers


def _cloud(
    world: World, script: Script, times: Times, link: SimulatedLink
) -> tuple[CloudLoop, Callable[[Process], None]]:
    """The cloud's loop, and what tells its parts which process they run in."""
    cell: list[Service] = []
    engine = SimulatedEngine(script, times, cell)
    beside = SimulatedDrafter(script, times.beside_ms, (1.0,), "beside")
    costs = StepCosts()
    for _ in range(3):
        for tokens in (1, 2, 4, 8):
            costs.learn(1, tokens, times.step(tokens))
    costs.remember()
    speeds = Speeds(costs, times.beside_ms / 1e3, times.beside_ms / 1e3, times.hint_ms / 1e3)
    settings = CloudSettings(idle_timeout=1e9)
    exits = tuple(range(1, len(times.exits) + 1))
    service = Service(Identity("t", "k", exits), engine, settings, speeds)
    cell.append(service)
    hub = _Hub(link)
    loop = CloudLoop(hub, service, engine, settings, lambda: world.now, drafter=beside)

    def bind(process: Process) -> None:
        link.cloud = engine.process = beside.process = process

    return loop, bind
