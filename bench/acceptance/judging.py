"""Predictions of a draft and of exit heads for the target's answers."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from bench.acceptance.figures import Judged
from bench.acceptance.lockstep_rounds import LENGTHS, accepted, ngram_accepted, ngram_matches
from bench.acceptance.teacher_forcing import (
    BATCH_ROWS,
    Flags,
    Guesses,
    TargetAnswer,
    teacher_force,
    write_answers,
)
from edgespec.config import NGRAM
from edgespec.manifest import Bundle
from edgespec.sampling import Sampling
from engines.backends import open_draft
from engines.base import Engine
from engines.onnxruntime_backend.engine import OrtSettings, load_target


@dataclass(frozen=True)
class LoadedPair:
    """Engines of a bundle's target and draft."""

    bundle: Bundle
    drafter: str
    target: Engine
    draft: Engine | None
    """None for prompt lookup."""


def load_pair(bundle: Bundle, drafter: str, threads: int) -> LoadedPair:
    draft = None
    if drafter != NGRAM:
        bundle.draft(drafter)
        draft = open_draft(bundle, drafter, threads, 2)
    target = load_target(bundle, OrtSettings(threads, slots=BATCH_ROWS + 1))
    return LoadedPair(bundle, drafter, target, draft)


def judge(
    pair: LoadedPair,
    categories: Sequence[str],
    prompts: Sequence[Sequence[int]],
    samplings: Callable[[int], Sequence[Sampling]],
    max_tokens: int,
    *,
    exits: bool,
) -> Iterator[tuple[TargetAnswer, Judged]]:
    """Yields every answer when the target completes it.

    `prompts` are token ids, `samplings(n)` the sampling parameters of prompt n. With `exits` the
    exit heads predict too, if the target has any.
    """
    target = pair.bundle.manifest.target
    hints = exits and bool(target.exits)
    calibrations = {s.end: s.calibration for s in target.segments if s.exit and s.calibration}
    ends = pair.bundle.manifest.text.end_ids
    predict = _predictor(pair)
    written = write_answers(pair.target, prompts, samplings, max_tokens, ends)
    for answer, slot in written:
        draft = predict(answer)
        heads = teacher_force(pair.target, slot, answer, calibrations, hints=True) if hints else {}
        category = categories[answer.prompt_number]
        yield answer, Judged(category, draft.right, draft.rounds, draft.guesses, heads)


class _DraftPrediction(NamedTuple):
    """Predictions of a draft for one answer; the fields are those of `Judged`."""

    right: Flags
    rounds: list[list[int]]
    guesses: Guesses | None


def _predictor(pair: LoadedPair) -> Callable[[TargetAnswer], _DraftPrediction]:
    if pair.draft is None:
        return _look_up
    engine = pair.draft
    slot, info = engine.open(), pair.bundle.draft(pair.drafter)
    calibrations = {info.architecture.layers: info.calibration} if info.calibration else {}

    def predict(answer: TargetAnswer) -> _DraftPrediction:
        engine.truncate(slot, 0)
        (guesses,) = teacher_force(engine, slot, answer, calibrations).values()
        right = guesses.right.tolist()
        rounds = [accepted(right, length) for length in LENGTHS]
        return _DraftPrediction(guesses.right, rounds, guesses)

    return predict


def _look_up(answer: TargetAnswer) -> _DraftPrediction:
    right = np.array(ngram_matches(answer.prompt, answer.tokens), bool)
    rounds = [ngram_accepted(answer.prompt, answer.tokens, length) for length in LENGTHS]
    return _DraftPrediction(right, rounds, None)
