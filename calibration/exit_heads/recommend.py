"""Which layers deserve an exit head: worth of a hint against what its head costs.

A hint from layer L names the outcome of a round before the verdict does: how many draft tokens are
accepted, and the token after them. It is worth the verify time that is still to come, since the
device can already draft what follows, but no more than the device needs for that (draft length
times draft step), and only in rounds whose outcome the device had not guessed by itself (all
accepted, then its own next token) and no earlier exit has named. Each exit head costs the shared
output matrix once more, in every round, while the verdict waits. So a split is worth, a round,

    Σ_rounds min(remaining(first exit that is right), need) / rounds  -  Σ_exits cost

and the best of all splits of up to `MOST` candidates is recommended: none where none is above 0.
The rounds are replayed on held-out text, so nothing is assumed about how exits and draft err
together. A hint that is wrong costs no more than its head: the device keeps its own guess as well.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from edgespec.architecture import Architecture
from edgespec.manifest import Precisions

MOST = 3
"""Exits of one target; a fourth has never paid."""
_BITS = {"fp32": 32.0, "fp16": 16.0, "int8": 8.5, "int4": 4.5}

Bools = npt.NDArray[np.bool_]
Ids = npt.NDArray[np.int64]


class Costs(NamedTuple):
    """Milliseconds."""

    layers: int
    layer: float
    """One layer for the rows of a round."""
    head: float
    """The output matrix for them, which is what an exit costs."""
    need: float
    """What the device needs to draft a round."""

    @property
    def verify(self) -> float:
        return self.layers * self.layer + self.head

    def remaining(self, layer: int) -> float:
        """Verify time still to come when the hint of an exit after `layer` is known."""
        return (self.layers - layer) * self.layer + self.head


class Recommendation(NamedTuple):
    split: tuple[int, ...]
    """Layers to cut after; empty where no exit is worth its head."""
    value: float
    """Milliseconds gained a round."""
    alone: dict[int, float]
    """The same for each candidate as the only exit."""


def recommend(right: Mapping[int, Bools], known: Bools, costs: Costs) -> Recommendation:
    """The split that is worth most; of equal ones the one with the fewest and latest exits.

    Args:
        right: By layer, whether the exit's hint named the round's outcome, [rounds].
        known: Whether the device's own guess did, [rounds].
    """
    worth: dict[tuple[int, ...], float] = {(): 0.0}
    for count in range(1, min(MOST, len(right)) + 1):
        for split in combinations(sorted(right), count):
            worth[split] = value(split, right, known, costs)
    best = max(worth, key=lambda split: (round(worth[split], 9), -len(split), split))
    return Recommendation(best, worth[best], {layer: worth[layer,] for layer in sorted(right)})


def value(split: Sequence[int], right: Mapping[int, Bools], known: Bools, costs: Costs) -> float:
    """Milliseconds that exits after the layers of `split`, rising, gain a round."""
    open_, gained = ~known, 0.0
    for layer in split:
        named = open_ & right[layer]
        gained += float(named.mean() if len(named) else 0) * min(costs.remaining(layer), costs.need)
        open_ = open_ & ~named
    return gained - len(split) * costs.head


def outcomes(draft: Ids, target: Ids, length: int) -> tuple[Ids, Ids]:
    """(accepted length, next token) of the rounds that start at each position of an answer.

    `draft` and `target` [n] hold the token after each position; rounds of `length` draft tokens
    that would reach past the end are left out, so both results are [max(0, n - length)].
    """
    rounds = max(0, len(target) - length)
    accepted = np.full(rounds, length)
    for place in reversed(range(length)):
        wrong = draft[place : place + rounds] != target[place : place + rounds]
        accepted[wrong] = place
    return accepted, target[np.arange(rounds) + accepted]


def foreseen(guess: Ids, draft: Ids, target: Ids, length: int) -> Bools:
    """Whether taking `guess` for the target's tokens names each round's outcome, [n - length].

    A round counts up to its first mismatch, where the texts are the same, so replaying it on the
    target's text is exact. With the draft itself as the guess it is: all accepted, and its own
    next token.
    """
    accepted, token = outcomes(draft, target, length)
    guessed, following = outcomes(draft, guess, length)
    return np.asarray((accepted == guessed) & (token == following), np.bool_)


def head_share(shapes: Architecture, precisions: Precisions) -> float:
    """Share of a short verify that the output matrix takes, by the bytes of weights that are read,
    which is what a step of a few rows costs on CPU and GPU alike."""
    queries, keys = shapes.heads * shapes.head_dim, shapes.kv_heads * shapes.head_dim
    layer = shapes.hidden * (2 * queries + 2 * keys + 3 * shapes.intermediate)
    head = shapes.hidden * shapes.vocabulary * _BITS[precisions.head]
    return head / (head + shapes.layers * layer * _BITS[precisions.layers])
