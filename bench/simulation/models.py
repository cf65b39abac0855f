"""Draft and target in virtual time: recorded words, and step times by a model."""

from __future__ import annotations

import random
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from bench.lab.recording import Recording, Said
from bench.simulation.virtual_time import Process
from edgespec.sampling import Sampling
from engines.base import Choices, Row, Step, check_rows
from engines.batches import plan
from engines.cache.pools import CacheTensor
from engines.cache.slots import SlotCache, SlotEngine
from engines.drafters.base import Guess

VOCABULARY = 1 << 20
END = 1
WRONG = 7
FIRST_PROMPT = 100
"""The first id of a recorded prompt says which it is: from here on."""
FIRST_ID = 1000
"""Recorded ids are kept apart from those that mean something here."""
ID_BYTES = 8
"""Of a cached position here."""
POSITION_BYTES = 46_080
"""Of a cached position of the built-in target, at fp32."""


@dataclass(frozen=True)
class Times:
    """Of one pair on its hardware; milliseconds.

    A step of the target over rows of one width takes

        target_ms + row_ms * (rows - 1) + token_ms * (rows * max(width, padded) - padded)

    and rows that the engine cannot pad to one width take a step each.
    """

    target_ms: float
    """A step of one row of one token."""
    token_ms: float
    """Each further token."""
    draft_ms: float
    """A draft step on the device."""
    cloud_draft_ms: float = 0.0
    """A draft step beside the target; 0: the cloud has no draft."""
    hint_ms: float = 0.0
    """What exit heads add to a step that asks them."""
    rtt_ms: float = 0.0
    batch: tuple[float, ...] = (1.0, 1.45, 1.62)
    """Times of a draft step over one, two, … texts, relative to one; as many as pay."""
    message_ms: float = 0.08
    """What a message costs the device."""
    cloud_message_ms: float = 0.04
    """What one costs the cloud, with its share of deciding and committing: of all that the loop did
    with 16 to 128 devices, 0.04 to 0.05 a message."""
    segments: int = 3
    """Of a target without exit heads."""
    exits: tuple[float, ...] = ()
    """How often each exit head is right, one for each inner segment boundary; empty: none."""
    row_ms: float = 0.0
    """Each further row of a step, beside its tokens."""
    padded: int = 1
    """Tokens of a row, at least; shorter ones are padded."""
    cloud_draft_text_ms: float = 0.0
    """Each further text of a draft step beside the target."""
    cloud_draft_read_ms: float = 0.0
    """Each further token of each text that it reads."""

    @property
    def layers(self) -> int:
        """Here a segment is a layer."""
        return len(self.exits) + 1 if self.exits else self.segments

    def step(self, width: int, rows: int = 1) -> float:
        """Seconds of a step of the target over `rows` of `width` tokens."""
        tokens = rows * max(width, self.padded) - self.padded
        return (self.target_ms + self.row_ms * (rows - 1) + self.token_ms * tokens) / 1e3

    def cloud_draft(self, texts: int, width: int = 1) -> float:
        """Seconds of a step of the draft beside the target that reads so much of each text."""
        reading = self.cloud_draft_read_ms * texts * (width - 1)
        return (self.cloud_draft_ms + self.cloud_draft_text_ms * (texts - 1) + reading) / 1e3


class Script:
    """What target and draft say: the recorded answers, and noise off their path."""

    def __init__(self, recording: Recording, seed: int = 0) -> None:
        self._recording = recording
        self._seed = seed
        self._chance = random.Random(seed)
        self._confidences = [said for answer in recording.answers for said in answer]
        self._ids = [[_id(said.token) for said in answer] for answer in recording.answers]

    def prompt(self, number: int) -> list[int]:
        """Ids that name the recorded prompt; the first says which."""
        return [FIRST_PROMPT + number] + [2] * max(1, self._recording.prompts[number] - 1)

    def answer(self, text: Sequence[int]) -> list[Said]:
        """Empty for a text that begins with no recorded prompt."""
        number = text[0] - FIRST_PROMPT
        return self._recording.answers[number] if self._known(number) else []

    def ids(self, number: int, tokens: int) -> list[int]:
        """How the answer to a recorded prompt begins, as the target says it here."""
        return self._ids[number][:tokens]

    def place(self, text: Sequence[int]) -> int:
        """How many ids of the text are behind its prompt."""
        number = text[0] - FIRST_PROMPT
        length = max(2, self._recording.prompts[number]) if self._known(number) else len(text)
        return len(text) - length

    def target(self, text: Sequence[int], place: int) -> int:
        """The target's token at `place` of the answer, if what is before it is the answer."""
        answer = self.answer(text)
        return _id(answer[place].token) if 0 <= place < len(answer) else END

    def hint(self, text: Sequence[int], place: int, layer: int, right: float) -> int:
        """What an exit head that is right that often says there: the same whenever it is asked."""
        draw = random.Random(f"{self._seed} {text[0]} {place} {layer}").random()
        return self.target(text, place) if draw < right else WRONG + 1 + layer

    def guess(self, text: Sequence[int]) -> Guess:
        answer, place = self.answer(text), self.place(text)
        said = list(text[len(text) - place :])
        if place < len(answer) and self.ids(text[0] - FIRST_PROMPT, place) == said:
            here = answer[place]
            return Guess(
                _id(here.guess),
                here.confidence,
                tuple((_id(other), confidence) for other, confidence in here.runners_up),
            )
        any_ = self._chance.choice(self._confidences)
        return _wrong(any_)

    def _known(self, number: int) -> bool:
        return 0 <= number < len(self._recording.answers)


def _id(token: int) -> int:
    return token + FIRST_ID


def _wrong(said: Said | Guess) -> Guess:
    """As sure, and never right."""
    others = tuple((WRONG + n, confidence) for n, (_, confidence) in enumerate(said.runners_up, 1))
    return Guess(WRONG, said.confidence, others)


class SimulatedDrafter:
    """A device's draft. `useless`: as slow and as sure as the recorded one, and never right."""

    def __init__(
        self,
        script: Script,
        process: Process,
        cost: Callable[[int], float],
        batch: int,
        name: str,
        *,
        useless: bool = False,
    ) -> None:
        """`cost`: seconds of a step over so many texts."""
        self.name = name
        self.batch = batch
        self._script, self._process, self._cost = script, process, cost
        self._useless = useless

    def guess(self, texts: Sequence[Sequence[int]], sampling: Sampling) -> list[Guess | None]:
        del sampling
        self._process.sleep(self._cost(len(texts)))
        guesses = (self._script.guess(text) for text in texts)
        if self._useless:
            return [_wrong(guess) for guess in guesses]
        return list(guesses)

    def reset(self) -> None:
        pass


class SimulatedCloudDraft:
    """The draft beside the target."""

    def __init__(self, script: Script, times: Times) -> None:
        self.process: Process | None = None
        self.steps: list[tuple[float, float]] = []
        """When each began, and its seconds."""
        self._script, self._times = script, times
        self._read: dict[int, int] = {}
        """Tokens of each session's text that it has read."""

    def guess(
        self, sessions: Sequence[int], texts: Sequence[Sequence[int]], sampling: Sampling
    ) -> list[Guess | None]:
        del sampling
        assert self.process is not None
        unread = [
            max(1, len(text) - self._read.get(session, 0))
            for session, text in zip(sessions, texts, strict=True)
        ]
        self._read |= {s: len(text) for s, text in zip(sessions, texts, strict=True)}
        seconds = self._times.cloud_draft(len(texts), max(unread))
        self.steps.append((self.process.world.now, seconds))
        self.process.sleep(seconds)
        return [self._script.guess(text) for text in texts]

    def retain(self, sessions: Collection[int]) -> None:
        self._read = {s: read for s, read in self._read.items() if s in sessions}


@dataclass(frozen=True)
class TargetStep:
    """One step that the target ran."""

    start: float
    seconds: float
    widths: tuple[int, ...]
    """Tokens of each row."""


class SimulatedEngine(SlotEngine):
    """The target: real slots that hold token ids instead of keys and values, so that what was
    evicted or rolled back too far shows as another answer."""

    vocabulary = VOCABULARY
    context = 4096

    def __init__(self, script: Script, times: Times, slots: int) -> None:
        super().__init__(SlotCache([CacheTensor("ids", 1, 1, np.int64)], slots))
        self.process: Process | None = None
        self.steps: list[TargetStep] = []
        self.min_tokens = times.padded
        self._script, self._times = script, times

    def slot_bytes(self, positions: int) -> int:
        """As if its positions held the target's keys and values."""
        return super().slot_bytes(positions) // ID_BYTES * POSITION_BYTES

    def limit(self, memory: int) -> None:
        super().limit(memory // POSITION_BYTES * ID_BYTES)

    def run(self, rows: Sequence[Row]) -> Iterator[Step]:
        assert self.process is not None
        check_rows(self, rows)
        calls = plan(rows, self._cache, self.min_tokens)
        seconds = sum(self._times.step(call.width, call.count) for call in calls)
        if any(row.hints for row in rows):
            seconds += self._times.hint_ms / 1e3
        widths = tuple(len(row.tokens) for row in rows)
        self.steps.append(TargetStep(self.process.world.now, seconds, widths))
        texts = [self._write(row) for row in rows]
        layers = self._times.layers
        with self._cache.still():
            for layer in range(1, layers + 1):
                self.process.sleep(seconds / layers)
                final = layer == layers
                choices = [
                    self._choices(row, text, layer) if row.wanted and (final or row.hints) else None
                    for row, text in zip(rows, texts, strict=True)
                ]
                yield Step(layer, final, choices)

    def _write(self, row: Row) -> list[int]:
        """The slot's text with the row's tokens."""
        end = row.start + len(row.tokens)
        pool, index = self._cache.place(row.slot)
        ids = pool.arrays["ids"][index, 0, :, 0]
        ids[row.start : end] = row.tokens
        self._cache.length[row.slot] = end
        text: list[int] = ids[:end].tolist()
        return text

    def _choices(self, row: Row, text: list[int], layer: int) -> Choices:
        end = self._script.place(text) + 1
        places = range(end - row.wanted, end)
        if layer == self._times.layers:
            ids = [self._script.target(text, at) for at in places]
        else:
            right = self._times.exits[layer - 1]
            ids = [self._script.hint(text, at, layer, right) for at in places]
        said = np.array(ids)
        none = np.zeros((row.wanted, 1), np.float32)
        return Choices(said, said[:, None], none, none)
