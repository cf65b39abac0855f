"""What the device has drafted beyond the committed text: a tree of ids, held as its paths.

The main path is what the draft would write by itself. A branch leaves it where the target may name
another token, holds that token and what would follow it. Verdicts cut the tree: paths that the
committed text contradicts go, and one that it names becomes the main path.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from edgespec.confidence import AcceptanceEstimate
from edgespec.protocol import Draft
from engines.drafters.base import Guess

KEPT = 12
"""Paths at most; the least likely branch goes first."""
Hit = Literal["full", "branch", "hint", "miss"]
"""What a verdict found here: the main path goes on; a branch, opened by the draft's own doubts or
by an exit's hint, goes on; nothing does."""


@dataclass(eq=False)
class DraftedPath:
    """Ids beyond the committed text, and what is known about each."""

    round: int
    parent: int
    """The round that it branches off, 0 for the committed text."""
    base: int
    """Where its own first id stands."""
    via: Hit = "full"
    """What a verdict that goes on along it is called."""
    ahead: list[int] = field(default_factory=list)
    confidences: list[float] = field(default_factory=list)
    """Probability of each id if those before it are right."""
    raw_confidences: list[float] = field(default_factory=list)
    """What the draft itself said of that."""
    runners_up: list[list[tuple[int, float]]] = field(default_factory=list)
    """For each id the runners-up that are left to try and their probabilities, likeliest first."""
    stuck: bool = False
    """The draft has no guess at what follows."""
    sent: int = 0
    """Position up to which the cloud has its ids."""

    def __post_init__(self) -> None:
        self.sent = self.base

    @property
    def chance(self) -> float:
        """Probability that all of it is right."""
        return math.prod(self.confidences)


class Tree:
    """`committed` is the session's own list, which grows."""

    def __init__(self, committed: Sequence[int], estimate: AcceptanceEstimate) -> None:
        """`estimate` learns from what the tree held, and says what its probabilities are worth."""
        self._committed = committed
        self._estimate = estimate
        self._length = len(committed)
        self._rounds = 0
        self.restart()

    def restart(self) -> None:
        """Forgets all drafts: what the cloud still has of them is unknown."""
        self.main = self._root()
        self.paths = [self.main]

    def _root(self) -> DraftedPath:
        self._rounds += 1
        return DraftedPath(self._rounds, 0, len(self._committed))

    def text(self, path: DraftedPath) -> list[int]:
        return [*self._committed, *path.ahead]

    def grow(self, path: DraftedPath, guess: Guess | None) -> None:
        if guess is None:
            path.stuck = True
            return
        path.ahead.append(guess.token)
        confidence = self._estimate.probability(guess.confidence)
        # What the trust takes from the first guess it gives to the others, and the reverse.
        share = (1 - confidence) / max(1 - guess.confidence, 1e-9)
        path.confidences.append(confidence)
        path.raw_confidences.append(guess.confidence)
        path.runners_up.append(
            [(other, min(1 - confidence, chance * share)) for other, chance in guess.runners_up]
        )

    def fork(self, path: DraftedPath, place: int) -> DraftedPath:
        """A path that names the runner-up at `place` of `path`; it is not tried again there."""
        token, confidence = path.runners_up[place].pop(0)
        return self.open(path, place, token, confidence, "branch")

    def open(
        self, path: DraftedPath, place: int, token: int, confidence: float, via: Hit
    ) -> DraftedPath:
        """A path that shares `place` ids with `path` and then names `token`."""
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
        if len(self.paths) > KEPT:
            branches = [p for p in self.paths if p is not self.main and p is not new]
            self.paths.remove(min(branches, key=lambda p: p.chance))
        return new

    def hinted(
        self, number: int, base: int, tokens: Sequence[int], confidence: float
    ) -> DraftedPath | None:
        """An exit head names the ids from `base` on, along round `number`; each is right with
        probability `confidence`. Returns the path that it adds, None if the tree has it already."""
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
        """Cuts the tree to what the committed text, which has grown, leaves of it."""
        fresh = list(self._committed[self._length :])
        self._length = len(self._committed)
        count = len(fresh)
        alive = [p for p in self.paths if p.ahead[:count] == fresh]
        self._learn(fresh)
        for path in alive:
            for column in (path.ahead, path.confidences, path.raw_confidences, path.runners_up):
                del column[:count]
            if path.sent == path.base:  # the cloud has never heard of it: it may start from here
                path.parent, path.base, path.sent = 0, self._length, self._length
        going_on = [p for p in alive if p.ahead]
        if self.main in alive and (self.main.ahead or not going_on):
            self.paths = alive
            return "full" if self.main.ahead else "miss"
        if not going_on:
            self.restart()
            return "miss"
        self.main = max(going_on, key=lambda p: p.chance)
        hit, self.main.via = self.main.via, "full"
        self.paths = alive
        return hit

    def _learn(self, fresh: Sequence[int]) -> None:
        for drafted, said, token in zip(
            self.main.ahead, self.main.raw_confidences, fresh, strict=False
        ):
            self._estimate.learn(said, right=drafted == token)
            if drafted != token:
                return

    def unsent(self) -> list[DraftedPath]:
        """Paths with ids that the cloud does not have, parents before their branches."""
        end = self._length
        return sorted((p for p in self.paths if p.sent < end + len(p.ahead)), key=lambda p: p.round)

    def packet(self, session: int, path: DraftedPath) -> Draft:
        """What the cloud lacks of a path; it counts as sent."""
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
