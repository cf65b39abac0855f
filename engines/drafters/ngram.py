"""Prompt lookup: guesses the token that followed the last occurrence of the latest tokens.

Source: Saxena 2023, prompt lookup decoding. It helps most where an answer repeats its prompt.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import NamedTuple

from edgespec.confidence import EXPECTED_ACCEPTANCE
from edgespec.config import NGRAM
from edgespec.sampling import common_prefix
from engines.drafters.base import DraftRequest, Guess

MAX_MATCH_TOKENS = 16
"""Tokens before a match that are compared to estimate the confidence."""
PRIOR_GUESSES = 30
"""Guesses within a session that weigh as much as the prior confidence."""


class NgramDrafter:
    """Prompt lookup with an index for each session.

    The longest ending is looked up first, and its latest occurrence counts. Prior confidence is
    `n / (n + 2)` for n matching tokens: in answers of the built-in pair half of the guesses are
    right for n = 2 and nine in ten from n = 9 on. The session's own hits and misses for the same n
    are added to it.
    """

    name = NGRAM
    batch = 1
    acceptance = EXPECTED_ACCEPTANCE

    def __init__(self, longest_tokens: int = 4, shortest_tokens: int = 2) -> None:
        """`longest_tokens`, `shortest_tokens`: lengths of the endings that are looked up."""
        self._sizes = range(longest_tokens, shortest_tokens - 1, -1)
        self._indexes: dict[int, _Index] = {}
        """Indexes by session id."""

    def guess(self, requests: Sequence[DraftRequest]) -> list[Guess | None]:
        return [self._index(request.session).guess(request.tokens) for request in requests]

    def retain(self, sessions: Collection[int]) -> None:
        self._indexes = {s: index for s, index in self._indexes.items() if s in sessions}

    def _index(self, session: int) -> _Index:
        if session not in self._indexes:
            self._indexes[session] = _Index(self._sizes)
        return self._indexes[session]


class _Learned(NamedTuple):
    """Changes made by indexing one position, for undoing them."""

    replaced: list[tuple[tuple[int, ...], int]]
    """Endings and the positions that they pointed to before; 0 for none."""
    matched: int
    """Tokens that matched when this position was looked up; 0 for none."""
    right: bool
    """True if the lookup found this position's token."""


class _Index:
    """The endings of one session's tokens and the positions that follow them."""

    def __init__(self, sizes: Sequence[int]) -> None:
        self._sizes = sizes
        self._tokens: list[int] = []
        self._follows: dict[tuple[int, ...], int] = {}
        self._log: list[_Learned] = []
        self._tries = [0] * (MAX_MATCH_TOKENS + 1)
        self._hits = [0] * (MAX_MATCH_TOKENS + 1)

    def guess(self, tokens: Sequence[int]) -> Guess | None:
        same = common_prefix(self._tokens, tokens)
        while len(self._tokens) > same:
            self._undo()
        for token in tokens[same:]:
            self._learn(token)
        position, matched = self._find()
        if not matched:
            return None
        prior = matched / (matched + 2)
        hits = self._hits[matched] + PRIOR_GUESSES * prior
        return Guess(self._tokens[position], hits / (self._tries[matched] + PRIOR_GUESSES))

    def _find(self) -> tuple[int, int]:
        """Return the position after the latest occurrence of the ending, and how many tokens match
        there, at most `MAX_MATCH_TOKENS`; 0, 0 if there is none."""
        tokens = self._tokens
        for size in self._sizes:
            position = self._follows.get(tuple(tokens[-size:]), 0)
            if position and size <= len(tokens):
                most = min(MAX_MATCH_TOKENS, position)
                while size < most and tokens[position - 1 - size] == tokens[-1 - size]:
                    size += 1
                return position, size
        return 0, 0

    def _learn(self, token: int) -> None:
        """Append a token and index the endings before it."""
        found, matched = self._find()
        replaced = []
        position = len(self._tokens)
        for size in self._sizes:
            if size <= position:
                ending = tuple(self._tokens[-size:])
                replaced.append((ending, self._follows.get(ending, 0)))
                self._follows[ending] = position
        right = matched > 0 and self._tokens[found] == token
        self._log.append(_Learned(replaced, matched, right))
        self._tries[matched] += 1
        self._hits[matched] += right
        self._tokens.append(token)

    def _undo(self) -> None:
        """Remove the last token, undoing its `_learn`."""
        self._tokens.pop()
        replaced, matched, right = self._log.pop()
        self._tries[matched] -= 1
        self._hits[matched] -= right
        for ending, before in replaced:
            if before:
                self._follows[ending] = before
            else:
                del self._follows[ending]
