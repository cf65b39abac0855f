"""A drafter that is never right, for the cost of drafting in vain."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence

from engines.drafters.base import Drafter, DraftRequest, Guess


def other_tokens(guess: Guess) -> Guess:
    """Return a guess with the same confidences and the neighbouring token ids."""
    runners_up = tuple((token ^ 1, confidence) for token, confidence in guess.runners_up)
    return Guess(guess.token ^ 1, guess.confidence, runners_up)


class UselessDrafter:
    """A drafter with another one's step times and confidences, and tokens that are never right."""

    def __init__(self, drafter: Drafter, wrong: Callable[[Guess], Guess] = other_tokens) -> None:
        """`wrong`: returns a guess with the same confidences and wrong tokens."""
        self.name, self.batch = drafter.name, drafter.batch
        self.acceptance = drafter.acceptance
        self._drafter, self._wrong = drafter, wrong

    def guess(self, requests: Sequence[DraftRequest]) -> list[Guess | None]:
        return [guess and self._wrong(guess) for guess in self._drafter.guess(requests)]

    def retain(self, sessions: Collection[int]) -> None:
        self._drafter.retain(sessions)
