"""Results of `bench acceptance`, and how they follow from the judged answers."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

import msgspec
import numpy as np

from bench.acceptance.lockstep_rounds import LENGTHS
from bench.acceptance.teacher_forcing import Flags, Guesses
from edgespec.confidence import calibration_error, reliability
from edgespec.sampling import Sampling
from engines.machine.doctor import Machine


@dataclass(frozen=True)
class Judged:
    """One answer, with the tokens that the draft and the exit heads predicted."""

    category: str
    right: Flags
    """[n] for an answer of n tokens: True if the draft predicts the token."""
    rounds: Sequence[Sequence[int]]
    """Accepted tokens of each round, for each of `LENGTHS`."""
    draft: Guesses | None
    """None for prompt lookup, which has no confidence."""
    exits: dict[int, Guesses] = field(default_factory=dict)
    """Predictions of the exit heads, by layer."""


class SamplingParameters(msgspec.Struct, frozen=True):
    temperature: float
    top_p: float

    @property
    def name(self) -> str:
        if not self.temperature:
            return "greedy"
        return f"T {self.temperature:g}, top-p {self.top_p:g}"


ReliabilityBin = tuple[float, float, int]
"""Mean confidence, share of right tokens, and number of tokens of a bin."""


class ExitFigures(msgspec.Struct, frozen=True):
    """Figures of one exit head."""

    layer: int
    agreement: float
    calibration_error: float
    reliability: list[ReliabilityBin]


class AnswerFigures(msgspec.Struct, frozen=True, kw_only=True):
    """Figures of all answers with one set of sampling parameters.

    Lists by draft length have one number for each of `LENGTHS`.
    """

    sampling: SamplingParameters
    tokens: int
    agreement: float
    """Share of the tokens that the draft predicts."""
    agreement_by_category: dict[str, float]
    accepted_per_round: list[float]
    """Mean accepted tokens of a round, by draft length."""
    accepted_per_round_by_category: dict[str, list[float]]
    tokens_per_round: list[float]
    """Mean committed tokens of a round, the target's own included, by draft length."""
    calibration_error: float | None
    """None for prompt lookup."""
    reliability: list[ReliabilityBin]
    exits: list[ExitFigures]


class AcceptanceFigures(AnswerFigures, frozen=True, kw_only=True):
    """Result of `bench acceptance`: the figures of the first sampling parameters, those of the
    second, if there are any, and step times."""

    drafter: str
    prompts: int
    max_tokens: int
    threads: int
    training_overlap: int | msgspec.UnsetType = msgspec.UNSET
    """Prompts that share an n-gram with the training text; unset if that was not checked."""
    sampled: AnswerFigures | msgspec.UnsetType = msgspec.UNSET
    draft_step_ms: float
    target_step_ms: float
    step_ratio: float
    """Draft step, relative to a target step."""
    machine: Machine

    @property
    def by_sampling(self) -> list[AnswerFigures]:
        return [self] if self.sampled is msgspec.UNSET else [self, self.sampled]


def summary(sampling: Sampling, judged: Sequence[Judged]) -> AnswerFigures:
    """Figures of all answers that were written with `sampling`."""
    by_category: dict[str, list[Judged]] = {}
    for answer in judged:
        by_category.setdefault(answer.category, []).append(answer)
    draft = [answer.draft for answer in judged if answer.draft is not None]
    layers = sorted({layer for answer in judged for layer in answer.exits})
    exits = {layer: [answer.exits[layer] for answer in judged] for layer in layers}
    return AnswerFigures(
        sampling=SamplingParameters(sampling.temperature, sampling.top_p),
        tokens=sum(len(answer.right) for answer in judged),
        agreement=_share(answer.right for answer in judged),
        agreement_by_category={
            name: _share(answer.right for answer in answers)
            for name, answers in by_category.items()
        },
        accepted_per_round=_accepted(judged),
        accepted_per_round_by_category={
            name: _accepted(answers) for name, answers in by_category.items()
        },
        tokens_per_round=_tokens_per_round(judged),
        calibration_error=_error(draft) if draft else None,
        reliability=_bins(draft) if draft else [],
        exits=[
            ExitFigures(
                layer, _share(each.right for each in guesses), _error(guesses), _bins(guesses)
            )
            for layer, guesses in exits.items()
        ],
    )


def _share(flags: Iterable[Flags]) -> float:
    return round(float(np.concatenate(list(flags)).mean()), 4)


def _accepted(judged: Sequence[Judged]) -> list[float]:
    return _by_length(
        lambda index: float(np.mean([n for answer in judged for n in answer.rounds[index]]))
    )


def _tokens_per_round(judged: Sequence[Judged]) -> list[float]:
    tokens = sum(len(answer.right) for answer in judged)
    return _by_length(lambda index: tokens / sum(len(answer.rounds[index]) for answer in judged))


def _by_length(figure: Callable[[int], float]) -> list[float]:
    return [round(figure(index), 4) for index in range(len(LENGTHS))]


def _error(guesses: Sequence[Guesses]) -> float:
    confidences = np.concatenate([each.confidences for each in guesses])
    likeliest = np.concatenate([each.likeliest for each in guesses])
    return round(calibration_error(confidences, likeliest), 4)


def _bins(guesses: Sequence[Guesses]) -> list[ReliabilityBin]:
    """Bins of a reliability diagram."""
    confidences = np.concatenate([each.confidences for each in guesses])
    likeliest = np.concatenate([each.likeliest for each in guesses])
    return [
        (round(b.confidence, 4), round(b.right, 4), b.tokens)
        for b in reliability(confidences, likeliest)
    ]
