"""The target's answers, several at once, and what a draft or an exit head says along them."""

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

ROWS = 16
"""Answers written at once."""
CHUNK = 128
"""Tokens of known text that are run at a time."""
Flags = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Answer:
    question: int
    """Number of its prompt."""
    way: int
    """Number of its sampling parameters."""
    prompt: Sequence[int]
    tokens: Sequence[int]
    sampling: Sampling


class Guesses(NamedTuple):
    """What a draft or an exit head says along an answer of n tokens; each [n]."""

    right: Flags
    """Its token, picked as the target picks, is the target's."""
    likeliest: Flags
    """Its likeliest token is the target's: what its confidence speaks of."""
    confidences: npt.NDArray[np.float32]


@dataclass
class _Desk:
    """A slot at work on one prompt: an answer for each of the sampling parameters, in turn."""

    slot: int
    question: int
    prompt: Sequence[int]
    ways: Sequence[Sampling]
    way: int = 0
    tokens: list[int] = field(default_factory=list)


def write(
    engine: Engine,
    prompts: Sequence[Sequence[int]],
    ways: Callable[[int], Sequence[Sampling]],
    max_tokens: int,
    end_ids: Collection[int],
) -> Iterator[tuple[Answer, int]]:
    """Each prompt's answers, one for each of `ways(number)`, with the slot that holds the prompt.

    While the generator rests, the slot may be run from the prompt's last token on. Answers come as
    they are done. The engine needs `ROWS` free slots.
    """
    waiting = list(enumerate(prompts))[::-1]
    desks: list[_Desk] = []
    while desks or waiting:
        while waiting and len(desks) < ROWS:
            number, prompt = waiting.pop()
            desks.append(_Desk(engine.open(), number, prompt, ways(number)))
            _read(engine, desks[-1].slot, prompt[:-1])
        for desk, choices in zip(
            desks, final_choices(engine, [_row(d) for d in desks]), strict=True
        ):
            assert choices is not None
            position = len(desk.prompt) + len(desk.tokens)
            desk.tokens.append(choose(choices.logits[0], desk.ways[desk.way], position))
        for desk in list(desks):
            if desk.tokens[-1] not in end_ids and len(desk.tokens) < max_tokens:
                continue
            sampling = desk.ways[desk.way]
            answer = Answer(desk.question, desk.way, desk.prompt, desk.tokens, sampling)
            yield answer, desk.slot
            engine.truncate(desk.slot, len(desk.prompt) - 1)
            desk.way, desk.tokens = desk.way + 1, []
            if desk.way == len(desk.ways):
                engine.close(desk.slot)
                desks.remove(desk)


def _row(desk: _Desk) -> Row:
    last = (desk.tokens or desk.prompt)[-1]
    return Row(desk.slot, len(desk.prompt) - 1 + len(desk.tokens), [last])


def _read(engine: Engine, slot: int, ids: Sequence[int]) -> None:
    """Runs what the slot lacks of `ids`."""
    while (start := engine.cached(slot)) < len(ids):
        final_choices(engine, [Row(slot, start, ids[start : start + CHUNK], 0)])


def listen(
    engine: Engine,
    slot: int,
    answer: Answer,
    calibrations: dict[int, Calibration],
    *,
    hints: bool = False,
) -> dict[int, Guesses]:
    """Guesses at each token of an answer, given the target's own text up to it, by layer.

    What `slot` holds must be a beginning of the answer's text; the prompt is not read again.
    `calibrations` says, by layer, how confidences are made. With `hints` these are the exit heads';
    else the head at the end of the engine, a draft, is asked.
    """
    head = len(answer.prompt) - 1
    text = [t if t < engine.vocabulary else 0 for t in (*answer.prompt, *answer.tokens[:-1])]
    engine.truncate(slot, head)
    _read(engine, slot, text[:head])
    heard: dict[int, list[Guesses]] = {}
    for start in range(head, len(text), CHUNK):
        part = text[start : start + CHUNK]
        for step in engine.run([Row(slot, start, part, len(part), hints)]):
            (choices,) = step.choices
            if choices is not None and step.final != hints:
                tokens = answer.tokens[start - head :][: len(part)]
                calibration = calibrations.get(step.layer, UNCALIBRATED)
                heard.setdefault(step.layer, []).append(
                    _judge(choices, tokens, answer.sampling, start + 1, calibration, hint=hints)
                )
    return {
        layer: Guesses(*(np.concatenate(column) for column in zip(*parts, strict=True)))
        for layer, parts in heard.items()
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
    """`position` is that of the first of `tokens`."""
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
