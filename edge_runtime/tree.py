"""The tokens drafted beyond the committed ones: a tree, held as its paths.

The main path is what the draft would write by itself. A branch leaves it where the target may
choose another token, and holds that token and the tokens that would follow it. Verdicts cut the
tree: paths that contradict the committed tokens are removed, and a branch that agrees with them may
become the main path.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from edgespec.confidence import AcceptanceEstimate
from edgespec.policies import DraftPolicy
from edgespec.protocol import Draft
from engines.drafters.base import Guess

Hit = Literal["full", "branch", "hint", "miss"]
"""Remainder of the tree after a verdict: the main path; a branch that a runner-up of the draft
opened; a branch that the hint of an exit head opened; nothing."""


@dataclass(eq=False)
class DraftedPath:
    """Tokens beyond the committed ones, and what is known about each of them."""

    round: int
    parent: int
    """Round that this path branches off; 0: the committed tokens."""
    base: int
    """Position of the first token that it does not share with its parent."""
    via: Hit = "full"
    """Kind of hit that a verdict along this path counts as."""
    ahead: list[int] = field(default_factory=list)
    """The tokens, from the first uncommitted position on."""
    confidences: list[float] = field(default_factory=list)
    """Probability of each token, given that those before it are right."""
    raw_confidences: list[float] = field(default_factory=list)
    """The same probabilities as the draft stated them, before the acceptance estimate."""
    runners_up: list[list[tuple[int, float]]] = field(default_factory=list)
    """Runners-up left to try at each position and their probabilities, most probable first."""
    stuck: bool = False
    """True if the draft cannot extend the path."""
    sent: int = 0
    """Position up to which the cloud has the tokens."""

    def __post_init__(self) -> None:
        self.sent = self.base

    @property
    def chance(self) -> float:
        """Probability that all tokens of the path are right."""
        return math.prod(self.confidences)


class Tree:
    """All drafted paths of one session."""

    def __init__(
        self,
        committed: Sequence[int],
        estimate: AcceptanceEstimate,
        policy: DraftPolicy = DraftPolicy(),
    ) -> None:
        """`committed` is the session's own list, which grows. `estimate` corrects the draft's
        probabilities, and learns from the verdicts."""
        self._committed = committed
        self._estimate = estimate
        self._kept = policy.kept_paths
        self._length = len(committed)
        self._rounds = 0
        self.restart()

    def restart(self) -> None:
        """Drops all drafts. Use it when it is unknown which of them the cloud has."""
        self.main = self._root()
        self.paths = [self.main]

    def resend(self) -> None:
        """Makes a new round of the main path, none of which the cloud has. Drops the branches."""
        root = self._root()
        self.main.round, self.main.parent = root.round, 0
        self.main.base = self.main.sent = root.base
        self.paths = [self.main]

    def _root(self) -> DraftedPath:
        self._rounds += 1
        return DraftedPath(self._rounds, 0, len(self._committed))

    def tokens(self, path: DraftedPath) -> list[int]:
        """The committed tokens and those of the path."""
        return [*self._committed, *path.ahead]

    def tokens_of(self, path: DraftedPath, place: int | None) -> list[int]:
        """The committed tokens and those of the path, or of its fork at `place`."""
        if place is None:
            return self.tokens(path)
        return [*self._committed, *path.ahead[:place], path.runners_up[place][0][0]]

    def grow(self, path: DraftedPath, guess: Guess | None) -> None:
        """Appends a guess to a path; without one the path is stuck."""
        if guess is None:
            path.stuck = True
            return
        path.ahead.append(guess.token)
        confidence = self._estimate.probability(guess.confidence)
        # The probability taken from the first guess goes to its runners-up, and the reverse.
        share = (1 - confidence) / max(1 - guess.confidence, 1e-9)
        path.confidences.append(confidence)
        path.raw_confidences.append(guess.confidence)
        path.runners_up.append(
            [(other, min(1 - confidence, chance * share)) for other, chance in guess.runners_up]
        )

    def fork(self, path: DraftedPath, place: int) -> DraftedPath:
        """A new path with the best runner-up at `place` of `path`, which is then used up."""
        token, confidence = path.runners_up[place].pop(0)
        return self.open(path, place, token, confidence, "branch")

    def open(
        self, path: DraftedPath, place: int, token: int, confidence: float, via: Hit
    ) -> DraftedPath:
        """A new path that shares `place` tokens with `path` and goes on with `token`. Drops the
        least probable branch if there are too many."""
        self._rounds += 1
        new = DraftedPath(
            self._rounds,
            path.round,
            self._length + place,
            via,
            [*path.ahead[:place], token],
            [*path.confidences[:place], confidence],
            [*path.raw_confidences[:place], confidence],
            [[] for _ in range(place + 1)],
        )
        self.paths.append(new)
        if len(self.paths) > self._kept:
            branches = [p for p in self.paths if p is not self.main and p is not new]
            self.paths.remove(min(branches, key=lambda p: p.chance))
        return new

    def hinted(
        self, number: int, base: int, tokens: Sequence[int], confidence: float
    ) -> DraftedPath | None:
        """Applies an exit head's `tokens` from position `base` on, along round `number`. Each is
        right with probability `confidence`. Returns the path that this adds; None if there is one
        already."""
        path = next((p for p in self.paths if p.round == number), None)
        if path is None or base != self._length:
            return None
        for place, token in enumerate(tokens):
            if place == len(path.ahead):
                return self._towards(path, place, token, confidence)
            if path.ahead[place] != token:
                path.confidences[place] = min(path.confidences[place], 1 - confidence)
                path.runners_up[place] = []
                return self._towards(path, place, token, confidence)
        return None

    def _towards(
        self, path: DraftedPath, place: int, token: int, confidence: float
    ) -> DraftedPath | None:
        start = [*path.ahead[:place], token]
        for other in self.paths:
            if other.ahead[: place + 1] == start:
                other.confidences[place] = max(other.confidences[place], confidence)
                return None
        return self.open(path, place, token, confidence, "hint")

    def commit(self) -> Hit:
        """Cuts the tree after tokens were committed."""
        fresh = list(self._committed[self._length :])
        self._length = len(self._committed)
        count = len(fresh)
        alive = [p for p in self.paths if p.ahead[:count] == fresh]
        self._learn(fresh)
        for path in alive:
            for column in (path.ahead, path.confidences, path.raw_confidences, path.runners_up):
                del column[:count]
            if path.sent == path.base:  # the cloud has nothing of it, so it may start from here
                path.parent, path.base, path.sent = 0, self._length, self._length
        continuing = [p for p in alive if p.ahead]
        if self.main in alive and (self.main.ahead or not continuing):
            self.paths = alive
            return "full" if self.main.ahead else "miss"
        if not continuing:
            self.restart()
            return "miss"
        self.main = max(continuing, key=lambda p: p.chance)
        hit, self.main.via = self.main.via, "full"
        self.paths = alive
        return hit

    def _learn(self, fresh: Sequence[int]) -> None:
        for drafted, confidence, token in zip(
            self.main.ahead, self.main.raw_confidences, fresh, strict=False
        ):
            self._estimate.learn(confidence, right=drafted == token)
            if drafted != token:
                return

    def unsent(self) -> list[DraftedPath]:
        """Paths with tokens that the cloud does not have, parents before their branches."""
        end = self._length
        return sorted((p for p in self.paths if p.sent < end + len(p.ahead)), key=lambda p: p.round)

    def packet(self, session: int, path: DraftedPath) -> Draft:
        """The message with the tokens of a path that the cloud lacks. They count as sent."""
        start, end = path.sent, self._length + len(path.ahead)
        known = self._committed[start : self._length]
        place = max(0, start - self._length)
        tokens = [*known, *path.ahead[place:]]
        confidences = [1.0] * len(known) + path.raw_confidences[place:]
        path.sent = end
        parent = path.parent if start == path.base else path.round
        return Draft(
            session, path.round, parent, start, tokens,
            bytes(round(255 * confidence) for confidence in confidences),
        )  # fmt: skip
