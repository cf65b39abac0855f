"""The contract of drafters, which guess the next token of one or more sessions.

A drafter is asked step by step. Each request carries all tokens of its branch, and the drafter
finds out which of them its cache holds. A caller may thus follow a tree of continuations in any
order.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import NamedTuple, Protocol

from edgespec.adjustments import Adjustments
from edgespec.sampling import Sampling


class Guess(NamedTuple):
    token: int
    """The draft's choice by the target's sampling rule, with the shared noise."""
    confidence: float
    """Probability, in (0, 1), that the target chooses this token."""
    runners_up: tuple[tuple[int, float], ...] = ()
    """The next tokens by the same rule, likeliest first, each with the probability that the target
    chooses it."""


class DraftRequest(NamedTuple):
    session: int
    tokens: Sequence[int]
    """All tokens of one branch: the prompt, the committed tokens and the drafted ones."""
    sampling: Sampling
    adjustments: Adjustments | None = None
    """Those of the session, shared by all its branches; None: it has none."""


class Drafter(Protocol):
    @property
    def name(self) -> str: ...

    @property
    def batch(self) -> int:
        """Most branches of one session worth guessing in one call; 1 if batching does not pay."""

    @property
    def acceptance(self) -> float:
        """Acceptance rate to expect before any verdict."""

    def guess(self, requests: Sequence[DraftRequest]) -> Sequence[Guess | None]:
        """Return the next token of each request, or None where there is no guess (nothing found,
        context full, logits not finite). Raises `EngineError` if the model fails."""

    def retain(self, sessions: Collection[int]) -> None:
        """Forget all sessions but these."""


def draft_tokens(
    drafter: Drafter, tokens: Sequence[int], count: int, sampling: Sampling, session: int = 0
) -> list[int]:
    """Return at most `count` guesses, each based on the ones before it."""
    drafted = list(tokens)
    while len(drafted) < len(tokens) + count:
        (guess,) = drafter.guess([DraftRequest(session, drafted, sampling)])
        if guess is None:
            break
        drafted.append(guess.token)
    return drafted[len(tokens) :]
