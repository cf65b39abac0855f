"""Teacher forcing: the target writes answers, several at once, and a draft or an exit head predicts
each token of them from the target's own tokens before it."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from edgespec.confidence import UNCALIBRATED, confidence
from edgespec.manifest import Calibration
from edgespec.sampling import Sampling, choose, guess
from engines.base import Choices, Engine, Row, final_choices

BATCH_ROWS = 16
"""Answers that are written at once."""
CHUNK_TOKENS = 128
"""Most known tokens of a step."""
Flags = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class TargetAnswer:
    """One answer of the target."""

    prompt_number: int
    sampling_number: int
    prompt: Sequence[int]
    tokens: Sequence[int]
    sampling: Sampling


class Guesses(NamedTuple):
    """Predictions of a draft or an exit head for an answer of n tokens; each array is [n]."""

    right: Flags
    """True if its token, chosen by the target's rule, is the target's."""
    likeliest: Flags
    """True if its likeliest token is the target's; confidences refer to this token."""
    confidences: npt.NDArray[np.float32]


@dataclass
class _Writing:
    """A slot that writes the answers to one prompt, one for each sampling parameters in turn."""

    slot: int
    prompt_number: int
    prompt: Sequence[int]
    samplings: Sequence[Sampling]
    sampling_number: int = 0
    tokens: list[int] = field(default_factory=list)

    @property
    def sampling(self) -> Sampling:
        return self.samplings[self.sampling_number]

    def row(self) -> Row:
        last = (self.tokens or self.prompt)[-1]
        return Row(self.slot, len(self.prompt) - 1 + len(self.tokens), [last])

    def add(self, choices: Choices) -> None:
        position = len(self.prompt) + len(self.tokens)
        self.tokens.append(choose(choices.logits[0], self.sampling, position))

    def answer(self) -> TargetAnswer:
        return TargetAnswer(
            self.prompt_number, self.sampling_number, self.prompt, self.tokens, self.sampling
        )


def write_answers(
    engine: Engine,
    prompts: Sequence[Sequence[int]],
    samplings: Callable[[int], Sequence[Sampling]],
    max_tokens: int,
    end_ids: Collection[int],
) -> Iterator[tuple[TargetAnswer, int]]:
    """Writes the answers to each prompt, one for each of `samplings(prompt number)`.

    Yields each answer when it is complete, with the slot that holds its prompt. Until the generator
    is resumed, the slot may be run from the prompt's last token on. The engine needs `BATCH_ROWS`
    free slots.
    """
    waiting = list(enumerate(prompts))[::-1]
    batch: list[_Writing] = []
    while batch or waiting:
        while waiting and len(batch) < BATCH_ROWS:
            number, prompt = waiting.pop()
            batch.append(_Writing(engine.open(), number, prompt, samplings(number)))
            _prefill(engine, batch[-1].slot, prompt[:-1])
        results = final_choices(engine, [writing.row() for writing in batch])
        for writing, choices in zip(batch, results, strict=True):
            assert choices is not None
            writing.add(choices)
        for writing in list(batch):
            if writing.tokens[-1] not in end_ids and len(writing.tokens) < max_tokens:
                continue
            yield writing.answer(), writing.slot
            engine.truncate(writing.slot, len(writing.prompt) - 1)
            writing.sampling_number, writing.tokens = writing.sampling_number + 1, []
            if writing.sampling_number == len(writing.samplings):
                engine.close(writing.slot)
                batch.remove(writing)


def _prefill(engine: Engine, slot: int, ids: Sequence[int]) -> None:
    """Runs the tokens of `ids` that the slot does not hold yet."""
    while (start := engine.cached(slot)) < len(ids):
        final_choices(engine, [Row(slot, start, ids[start : start + CHUNK_TOKENS], 0)])


def teacher_force(
    engine: Engine,
    slot: int,
    answer: TargetAnswer,
    calibrations: dict[int, Calibration],
    *,
    hints: bool = False,
) -> dict[int, Guesses]:
    """Returns the predictions of each token of an answer, by layer.

    With `hints` the exit heads predict; otherwise the engine, a draft, predicts with its final
    head. `calibrations` holds the calibration of confidences by layer. The tokens in `slot` must be
    a prefix of the answer's text; they are not run again.
    """
    head = len(answer.prompt) - 1
    text = [t if t < engine.vocabulary else 0 for t in (*answer.prompt, *answer.tokens[:-1])]
    engine.truncate(slot, head)
    _prefill(engine, slot, text[:head])
    guesses: dict[int, list[Guesses]] = {}
    for start in range(head, len(text), CHUNK_TOKENS):
        chunk = text[start : start + CHUNK_TOKENS]
        for step in engine.run([Row(slot, start, chunk, len(chunk), hints)]):
            (choices,) = step.choices
            if choices is not None and step.final != hints:
                tokens = answer.tokens[start - head :][: len(chunk)]
                calibration = calibrations.get(step.layer, UNCALIBRATED)
                guesses.setdefault(step.layer, []).append(
                    _judge(choices, tokens, answer.sampling, start + 1, calibration, hint=hints)
                )
    return {
        layer: Guesses(*(np.concatenate(column) for column in zip(*parts, strict=True)))
        for layer, parts in guesses.items()
    }


def _judge(
    choices: Choices,
    tokens: Sequence[int],
    sampling: Sampling,
    position: int,
    calibration: Calibration,
    *,
    hint: bool,
) -> Guesses:
    """Compares `choices` with the target's `tokens`, the first of which is at `position`."""
    size = choices.logits.shape[1]
    picked = np.empty(len(tokens), np.int64)
    for i in range(len(tokens)):
        if hint:
            ids, logits = choices.top_ids[i], choices.top_logits[i]
            picked[i] = guess(ids, logits, sampling, position + i, size)
        else:
            picked[i] = choose(choices.logits[i], sampling, position + i)
    target = np.asarray(tokens)
    confidences = confidence(choices.top_logits, calibration)
    return Guesses(picked == target, choices.top_ids[:, 0] == target, confidences)
