"""A text that an answer is expected to repeat, such as a file of which a few lines will change.

The n-gram drafter is primed with it: where the answer's last tokens occur in the prediction, the
token that follows there is drafted, without a step of the draft model. The target verifies it like
any other draft.
"""

from __future__ import annotations

from collections.abc import Sequence

from edgespec.sampling import Sampling
from engines.drafters.base import DraftRequest, Guess
from engines.drafters.ngram import NgramDrafter

BEGINNING_TOKENS = 4
"""Tokens of the prompt's end after which the prediction is expected to begin."""
SHORTEST_MATCH_TOKENS = 2


class Prediction:
    """The prediction of one answer."""

    def __init__(self, prompt: Sequence[int], tokens: Sequence[int]) -> None:
        self._primed = [*prompt[-BEGINNING_TOKENS:], *tokens]
        self._lookup = NgramDrafter(BEGINNING_TOKENS, SHORTEST_MATCH_TOKENS)
        width = SHORTEST_MATCH_TOKENS + 1
        self._follows = set(zip(*(self._primed[start:] for start in range(width)), strict=False))
        """The tokens of the prediction, each with those before it."""
        self._drafted: dict[int, set[int]] = {}
        """Tokens that were drafted from the prediction, by position."""

    def guess(self, tokens: Sequence[int], sampling: Sampling) -> Guess | None:
        """The token that the prediction has after `tokens`; None if they do not occur in it."""
        (guess,) = self._lookup.guess([DraftRequest(0, [*self._primed, *tokens], sampling)])
        if guess is None or (*tokens[-SHORTEST_MATCH_TOKENS:], guess.token) not in self._follows:
            return None
        self._drafted.setdefault(len(tokens), set()).add(guess.token)
        return guess

    def drafted(self, position: int, token: int) -> bool:
        """Says whether a committed token was drafted from the prediction. Forgets its position."""
        return token in self._drafted.pop(position, ())
