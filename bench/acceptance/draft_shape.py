"""Agreement, step time and expected speed of one draft."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import numpy.typing as npt

from bench.acceptance.lockstep_rounds import LENGTHS, accepted, expected_speed, mean_accepted
from bench.acceptance.step_times import medians
from bench.acceptance.teacher_forcing import TargetAnswer, teacher_force
from edgespec.manifest import Bundle
from edgespec.sampling import Sampling
from engines.backends import open_draft
from engines.base import Engine, Row, final_choices
from engines.drafters.base import draft_tokens
from engines.drafters.ngram import NgramDrafter
from engines.step_times import PAST_TOKENS, RepeatedStep, Step

LOOKUP_CONFIDENCE = 0.3
"""Confidence of the draft below which prompt lookup drafts instead."""


@dataclass(frozen=True)
class DraftShape:
    """One draft at one profile. Agreements are shares of the tokens of greedy held-out answers."""

    name: str
    layers: str
    profile: str
    words: int
    """Vocabulary size."""
    megabytes: float
    """Weights of the layers and the head, without the embedding."""
    agreement: float
    with_ngram: float
    """Agreement with prompt lookup where the draft's confidence is low."""
    accepted: float
    """Mean accepted tokens of a round with drafts of `length` tokens."""
    length: int
    """Draft length in tokens with the highest expected speed."""
    step_ms: float
    step_ratio: float
    """Draft step, relative to the target's step of one token in the same run."""
    tokens_per_s: float
    """Expected speed under streaming."""


@dataclass(frozen=True)
class Reference:
    """The target that drafts are compared with."""

    target: Engine
    answers: Sequence[TargetAnswer]
    verify_ms: Sequence[float]
    """Target steps of one row of 1, 2, … tokens."""
    threads: int


def verify_ms(target: Engine) -> list[float]:
    """Target steps of one row of 1, 2, … tokens."""
    slot = target.open()
    ids = [number % target.vocabulary for number in range(100, 101 + PAST_TOKENS + len(LENGTHS))]
    final_choices(target, [Row(slot, 0, ids[:PAST_TOKENS], 0)])
    rows = [
        Row(slot, PAST_TOKENS, ids[PAST_TOKENS : PAST_TOKENS + count], count)
        for count in range(1, len(LENGTHS) + 2)
    ]
    steps: dict[str, Step] = {
        str(len(row.tokens)): partial(final_choices, target, [row]) for row in rows
    }
    times = medians(steps)
    target.close(slot)
    return list(times.values())


def measure(name: str, bundle: Bundle, profile: str, reference: Reference) -> DraftShape:
    """Teacher-forces the draft of a profile along the target's answers and measures its step."""
    engine = open_draft(bundle, profile, reference.threads, 2)
    right, with_ngram, slot = [], [], engine.open()
    for answer in reference.answers:
        engine.truncate(slot, 0)
        (guesses,) = teacher_force(engine, slot, answer, {}).values()
        right.append(guesses.right.tolist())
        with_ngram.append(_with_ngram(answer, right[-1], guesses.confidences))
    times = medians({"draft": RepeatedStep(engine), "target": RepeatedStep(reference.target)})
    scale = reference.verify_ms[0] / times["target"]  # the machine's speed may have drifted
    rounds = [[n for flags in right for n in accepted(flags, length)] for length in LENGTHS]
    speed, length = expected_speed(rounds, times["draft"] * scale, reference.verify_ms)
    draft = bundle.draft(profile)
    target_layers = bundle.manifest.target.architecture.layers
    return DraftShape(
        name=name,
        layers=f"{draft.architecture.layers} of {target_layers}",
        profile=profile,
        words=draft.vocabulary,
        megabytes=_megabytes(bundle, profile),
        agreement=_share(right),
        with_ngram=_share(with_ngram),
        accepted=mean_accepted(rounds[length - 1]),
        length=length,
        step_ms=times["draft"],
        step_ratio=times["draft"] / times["target"],
        tokens_per_s=speed,
    )


def _megabytes(bundle: Bundle, profile: str) -> float:
    folder = f"draft/{profile}/"
    sizes = {p: f.size for p, f in bundle.manifest.files.items() if p.startswith(folder)}
    return sum(size for path, size in sizes.items() if "embedding" not in path) / 1e6


def _with_ngram(
    answer: TargetAnswer, right: Sequence[bool], confidences: npt.NDArray[np.float32]
) -> list[bool]:
    """True for each token that the draft predicts, or prompt lookup where the draft's confidence is
    low and lookup finds a token."""
    drafter, text = NgramDrafter(), [*answer.prompt, *answer.tokens]
    flags = list(right)
    for i, position in enumerate(range(len(answer.prompt), len(text))):
        if confidences[i] < LOOKUP_CONFIDENCE:
            found = draft_tokens(drafter, text[:position], 1, Sampling())
            flags[i] = found == [text[position]] if found else right[i]
    return flags


def _share(flags: Sequence[Sequence[bool]]) -> float:
    return sum(map(sum, flags)) / max(sum(map(len, flags)), 1)
