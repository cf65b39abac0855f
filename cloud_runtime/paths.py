"""What a device has drafted for a session: a tree of ids, as paths that outlive verdicts."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from edgespec.confidence import AcceptanceEstimate
from edgespec.protocol import Draft

KEPT, SPARE = 32, 16
"""Paths of a session; when there are so many more, the least likely go, all at once since ranking
them takes time."""
LONGEST = 256
"""Ids of a path beyond the committed text; a device has far fewer, and more are dropped."""


@dataclass
class CandidatePath:
    """One line of the tree: ids from position `start` on, and how sure the draft is of each."""

    round: int
    start: int
    tokens: list[int]
    confidences: list[float]
    grown: float = 0.0
    """When ids last came for it."""
    own: int | None = None
    """Where what the cloud drafted begins; None: nowhere."""
    base: int = field(default=0, init=False)
    """Where its own ids begin; those before it are its parent's."""
    branch: bool = field(default=False, init=False)
    """Its own first id is not what the draft would say, but what it might say instead."""
    agreed: int = field(init=False)
    """Up to this position it is the committed text."""
    dead: bool = field(default=False, init=False)
    """The committed text differs from it at `agreed`."""

    def __post_init__(self) -> None:
        self.agreed = self.start

    @property
    def end(self) -> int:
        return self.start + len(self.tokens)

    def theirs(self, position: int, end: int) -> int:
        """How many ids of `[position, end)` the device drafted."""
        return max(0, min(end, self.end if self.own is None else self.own) - position)

    def compare(self, committed: Sequence[int], estimate: AcceptanceEstimate) -> None:
        """Compares further ids with the committed text; `estimate` learns from each of its own."""
        while not self.dead and self.agreed < min(self.end, len(committed)):
            place = self.agreed - self.start
            self.dead = self.tokens[place] != committed[self.agreed]
            if self.agreed >= self.base:  # what it shares with its parent was counted there
                second = self.branch and self.agreed == self.base
                estimate.learn(self.confidences[place], right=not self.dead, first=not second)
            self.agreed += not self.dead

    def ahead(self, position: int) -> list[int]:
        """Its ids from `position` on."""
        return self.tokens[position - self.start :]

    def confidences_ahead(self, position: int) -> list[float]:
        return self.confidences[position - self.start :]


class CandidatePaths:
    """The paths of one session. `committed` is the session's own list, which grows."""

    def __init__(self, committed: Sequence[int]) -> None:
        self._committed = committed
        self._paths: dict[int, CandidatePath] = {}
        self._best: tuple[int, CandidatePath | None] = -1, None
        """The length of the committed text, and the best path then."""
        self.estimate = AcceptanceEstimate()

    def add(self, draft: Draft) -> CandidatePath | None:
        """Takes the ids of a packet; the path that grew, None if the packet adds nothing.

        A packet that leaves a gap, or whose parent was never here, was overtaken or its forerunner
        lost: it is dropped, since the device will start another round before long.
        """
        self._best = -1, None
        confidences = [confidence / 255 for confidence in draft.confidences] or [0.5] * len(
            draft.tokens
        )
        path = self._paths.get(draft.round)
        if path is None:
            path = self._begin(draft, confidences)
        elif path.start <= draft.base <= path.end:
            known = path.end - draft.base
            path.tokens += draft.tokens[known:]
            path.confidences += confidences[known:]
        else:
            return None
        if path is not None:
            room = max(0, len(self._committed) + LONGEST - path.start)
            del path.tokens[room:], path.confidences[room:]
            path.compare(self._committed, self.estimate)
        return path

    def _begin(self, draft: Draft, confidences: list[float]) -> CandidatePath | None:
        start, tokens = draft.base, list(draft.tokens)
        if draft.parent:
            parent = self._paths.get(draft.parent)
            if parent is None or draft.base > parent.end or draft.base < parent.start:
                return None
            if draft.base > parent.agreed:
                if parent.dead:
                    return None
                start = parent.agreed
                shared = slice(start - parent.start, draft.base - parent.start)
                tokens = parent.tokens[shared] + tokens
                confidences = parent.confidences[shared] + confidences
        elif draft.base > len(self._committed):
            return None
        path = self._paths[draft.round] = CandidatePath(draft.round, start, tokens, confidences)
        path.base, path.branch = draft.base, bool(draft.parent)
        if len(self._paths) > KEPT + SPARE:
            others = [p for p in self._paths.values() if p is not path]
            for other in sorted(others, key=self._chance)[: SPARE + 1]:
                del self._paths[other.round]
        return path

    def _chance(self, path: CandidatePath) -> float:
        """Probability that what it has beyond the committed text is right."""
        length = len(self._committed)
        return 0.0 if path.dead or path.end < length else math.prod(path.confidences_ahead(length))

    def settle(self) -> None:
        """Compares what is new in the committed text with every path."""
        self._best = -1, None
        for path in self._paths.values():
            path.compare(self._committed, self.estimate)

    def best(self) -> CandidatePath | None:
        """The path to verify: of those that go on from the committed text, the oldest with ids
        beyond it; one without, if there is no other. A branch is younger than what it leaves."""
        length = len(self._committed)
        if self._best[0] != length:
            alive = [path for path in self._paths.values() if not path.dead and path.end >= length]
            best = min(alive, key=lambda path: (path.end == length, path.round), default=None)
            self._best = length, best
        return self._best[1]
