"""Choosing the layers with an exit head: the gain of a hint against the cost of its head.

A hint from layer L predicts the outcome of a round before the verdict: the number of accepted draft
tokens, and the token after them. It gains the remaining verify time, because the device can already
draft the next tokens, but at most the time that the device needs for that (draft length times draft
step). It gains nothing in rounds whose outcome the device guessed itself (all accepted, then its
own next token) or an earlier exit predicted. Each exit head runs the shared output matrix once more
in every round, before the verdict. The gain of a split per round is therefore

    Σ_rounds min(remaining(first exit that is right), draft time) / rounds  -  Σ_exits cost

The best of all splits of up to `MAX_EXITS` candidates is recommended, or none if no gain is
positive. The rounds are replayed on held-out text, so there is no assumption about joint errors of
exits and draft. A wrong hint costs only its head, because the device keeps its own guess too.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from edgespec.architecture import Architecture
from edgespec.manifest import Precisions

MAX_EXITS = 3
"""Most exits of one target; a fourth never gained anything."""
_BITS_PER_WEIGHT = {"fp32": 32.0, "fp16": 16.0, "int8": 8.5, "int4": 4.5}

Bools = npt.NDArray[np.bool_]
Ids = npt.NDArray[np.int64]


class Costs(NamedTuple):
    """Measured times of one round."""

    layers: int
    layer_ms: float
    """Time of one layer for the rows of a round."""
    head_ms: float
    """Time of the output matrix for these rows, which is the cost of an exit."""
    draft_ms: float
    """Time that the device needs to draft a round."""

    @property
    def verify_ms(self) -> float:
        return self.layers * self.layer_ms + self.head_ms

    def remaining_ms(self, layer: int) -> float:
        """Return the verify time after the hint of an exit after `layer`."""
        return (self.layers - layer) * self.layer_ms + self.head_ms


class Recommendation(NamedTuple):
    """The best split, and its gain."""

    split: tuple[int, ...]
    """Layers to cut after; empty if no exit gains more than it costs."""
    gain_ms: float
    """Time gained per round."""
    alone_ms: dict[int, float]
    """Gain of each candidate as the only exit."""


def recommend(right: Mapping[int, Bools], guessed: Bools, costs: Costs) -> Recommendation:
    """Return the split with the largest gain; of equal ones, that with the fewest, latest exits.

    Args:
        right: By layer, True where the exit's hint predicted the round's outcome, [rounds].
        guessed: True where the device's own guess did, [rounds].
    """
    gains: dict[tuple[int, ...], float] = {(): 0.0}
    for count in range(1, min(MAX_EXITS, len(right)) + 1):
        for split in combinations(sorted(right), count):
            gains[split] = gain_ms(split, right, guessed, costs)
    best = max(gains, key=lambda split: (round(gains[split], 9), -len(split), split))
    return Recommendation(best, gains[best], {layer: gains[layer,] for layer in sorted(right)})


def gain_ms(
    split: Sequence[int], right: Mapping[int, Bools], guessed: Bools, costs: Costs
) -> float:
    """Return the gain per round of exits after the layers of `split`, ascending."""
    undecided, gained_ms = ~guessed, 0.0
    for layer in split:
        predicted = undecided & right[layer]
        most_ms = min(costs.remaining_ms(layer), costs.draft_ms)
        gained_ms += float(predicted.mean() if len(predicted) else 0) * most_ms
        undecided = undecided & ~predicted
    return gained_ms - len(split) * costs.head_ms


def outcomes(draft: Ids, target: Ids, length: int) -> tuple[Ids, Ids]:
    """Return (accepted length, next token) of the rounds that start at each position of an answer.

    `draft` and `target` [n] hold the token after each position; rounds of `length` draft tokens
    that would reach beyond the end are omitted, so both results are [max(0, n - length)].
    """
    rounds = max(0, len(target) - length)
    accepted = np.full(rounds, length)
    for place in reversed(range(length)):
        wrong = draft[place : place + rounds] != target[place : place + rounds]
        accepted[wrong] = place
    return accepted, target[np.arange(rounds) + accepted]


def foreseen(guess: Ids, draft: Ids, target: Ids, length: int) -> Bools:
    """Return True where `guess`, used as the target's tokens, predicts a round's outcome.

    The result is [n - length]. A round ends at its first mismatch, and the texts are the same up to
    there, so the replay on the target's text is exact. With the draft itself as the guess, the
    predicted outcome is: all accepted, and the draft's own next token.
    """
    accepted, token = outcomes(draft, target, length)
    guessed, following = outcomes(draft, guess, length)
    return np.asarray((accepted == guessed) & (token == following), np.bool_)


def head_share(shapes: Architecture, precisions: Precisions) -> float:
    """Return the fraction of a short verify that the output matrix takes.

    The bytes of the weights decide the time of a step of a few rows, on CPU and GPU.
    """
    queries, keys = shapes.heads * shapes.head_dim, shapes.kv_heads * shapes.head_dim
    layer = shapes.hidden * (2 * queries + 2 * keys + 3 * shapes.intermediate)
    head = shapes.hidden * shapes.vocabulary * _BITS_PER_WEIGHT[precisions.head]
    return head / (head + shapes.layers * layer * _BITS_PER_WEIGHT[precisions.layers])
