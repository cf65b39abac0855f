"""From where drafts and exit heads were right to the figures that are printed."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from bench.acceptance.lockstep_rounds import LENGTHS
from bench.acceptance.teacher_forcing import Flags, Guesses
from edgespec.confidence import calibration_error, reliability
from edgespec.sampling import Sampling


@dataclass(frozen=True)
class Judged:
    """One answer, and where the draft and the exit heads were right."""

    category: str
    right: Flags
    """[n] for an answer of n tokens: the draft names the token."""
    rounds: Sequence[Sequence[int]]
    """For each of `LENGTHS`, the accepted tokens of each round."""
    draft: Guesses | None
    """None for prompt lookup, which has no confidence."""
    exits: dict[int, Guesses] = field(default_factory=dict)
    """By layer."""


def summary(way: Sampling, judged: Sequence[Judged]) -> dict[str, Any]:
    """Figures of all answers written one way, ready for JSON.

    Lists by draft length have one number for each of `LENGTHS`. `tokens_per_round` counts the
    target's own token too, so it is what a verify yields.
    """
    categories = list(dict.fromkeys(of.category for of in judged))
    draft = [of.draft for of in judged if of.draft is not None]
    layers = sorted({layer for of in judged for layer in of.exits})
    exits = {layer: [of.exits[layer] for of in judged] for layer in layers}
    return {
        "sampling": {"temperature": way.temperature, "top_p": way.top_p},
        "tokens": sum(len(of.right) for of in judged),
        "agreement": _share(of.right for of in judged),
        "agreement_by_category": {
            name: _share(of.right for of in _only(judged, name)) for name in categories
        },
        "accepted_per_round": _accepted(judged),
        "accepted_per_round_by_category": {
            name: _accepted(_only(judged, name)) for name in categories
        },
        "tokens_per_round": _by_length(
            lambda place: (
                sum(len(of.right) for of in judged) / sum(len(of.rounds[place]) for of in judged)
            )
        ),
        "calibration_error": _error(draft) if draft else None,
        "reliability": _bins(draft) if draft else [],
        "exits": [
            {
                "layer": layer,
                "agreement": _share(guesses.right for guesses in heard),
                "calibration_error": _error(heard),
                "reliability": _bins(heard),
            }
            for layer, heard in exits.items()
        ],
    }


def _only(judged: Sequence[Judged], category: str) -> list[Judged]:
    return [of for of in judged if of.category == category]


def _share(flags: Iterable[Flags]) -> float:
    return round(float(np.concatenate(list(flags)).mean()), 4)


def _accepted(judged: Sequence[Judged]) -> list[float]:
    return _by_length(
        lambda place: float(np.mean([count for of in judged for count in of.rounds[place]]))
    )


def _by_length(figure: Callable[[int], float]) -> list[float]:
    return [round(figure(place), 4) for place in range(len(LENGTHS))]


def _error(heard: Sequence[Guesses]) -> float:
    confidences = np.concatenate([guesses.confidences for guesses in heard])
    likeliest = np.concatenate([guesses.likeliest for guesses in heard])
    return round(calibration_error(confidences, likeliest), 4)


def _bins(heard: Sequence[Guesses]) -> list[tuple[float, float, int]]:
    """(confidence, share right, tokens) of each bin of a reliability diagram."""
    confidences = np.concatenate([guesses.confidences for guesses in heard])
    likeliest = np.concatenate([guesses.likeliest for guesses in heard])
    return [
        (round(b.confidence, 4), round(b.right, 4), b.tokens)
        for b in reliability(confidences, likeliest)
    ]
