"""Draft tokens that a device has sent for a session: a tree of token ids, stored as paths."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from edgespec.confidence import AcceptanceEstimate
from edgespec.policies import SchedulerPolicy
from edgespec.protocol import Draft

UNKNOWN_CONFIDENCE = 0.5
"""Confidence of tokens that come without one."""


@dataclass
class CandidatePath:
    """One path of the tree: token ids from position `start` on, each with its confidence."""

    round: int
    start: int
    tokens: list[int]
    confidences: list[float]
    grown_at: float = 0.0
    """Time at which its last tokens arrived, in seconds; 0: never."""
    cloud_start: int | None = None
    """First position that the cloud drafted; None: the device drafted all."""
    base: int = field(default=0, init=False)
    """First position of its own tokens; those before it are its parent's."""
    branch: bool = field(default=False, init=False)
    """True if its first own token is an alternative to the draft's first choice."""
    agreed: int = field(init=False)
    """Position up to which it equals the committed tokens."""
    dead: bool = field(default=False, init=False)
    """True if the committed tokens differ from it at `agreed`."""

    def __post_init__(self) -> None:
        self.agreed = self.start

    @property
    def end(self) -> int:
        return self.start + len(self.tokens)

    def device_tokens(self, position: int, end: int) -> int:
        """Number of tokens in `[position, end)` that the device drafted."""
        device_end = self.end if self.cloud_start is None else self.cloud_start
        return max(0, min(end, device_end) - position)

    def compare(self, committed: Sequence[int], estimate: AcceptanceEstimate) -> None:
        """Compares further tokens with the committed ones; `estimate` learns from its own tokens.

        Tokens shared with the parent are not learned again.
        """
        while not self.dead and self.agreed < min(self.end, len(committed)):
            place = self.agreed - self.start
            self.dead = self.tokens[place] != committed[self.agreed]
            if self.agreed >= self.base:
                alternative = self.branch and self.agreed == self.base
                estimate.learn(self.confidences[place], right=not self.dead, first=not alternative)
            self.agreed += not self.dead

    def ahead(self, position: int) -> list[int]:
        """Its tokens from `position` on."""
        return self.tokens[position - self.start :]

    def confidences_ahead(self, position: int) -> list[float]:
        return self.confidences[position - self.start :]


class CandidatePaths:
    """The paths of one session."""

    def __init__(
        self, committed: Sequence[int], policy: SchedulerPolicy = SchedulerPolicy()
    ) -> None:
        """`committed` is the session's own list of tokens, which grows."""
        self._committed = committed
        self._policy = policy
        self._paths: dict[int, CandidatePath] = {}
        self._best: tuple[int, CandidatePath | None] = -1, None
        """The best path, and the number of committed tokens for which it was found."""
        self.estimate = AcceptanceEstimate()

    def add(self, draft: Draft) -> CandidatePath | None:
        """Adds the tokens of a packet; returns the path that grew, None if the packet is dropped.

        A packet is dropped if it leaves a gap or names an unknown parent: an earlier packet was
        lost or is late. The device starts another round soon.
        """
        self._best = -1, None
        confidences = [confidence / 255 for confidence in draft.confidences]
        confidences = confidences or [UNKNOWN_CONFIDENCE] * len(draft.tokens)
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
            room = max(0, len(self._committed) + self._policy.path_tokens - path.start)
            del path.tokens[room:], path.confidences[room:]
            path.compare(self._committed, self.estimate)
        return path

    def _begin(self, draft: Draft, confidences: list[float]) -> CandidatePath | None:
        """A new path, with its parent's tokens where they are not committed yet."""
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
        if len(self._paths) > self._policy.kept_paths + self._policy.spare_paths:
            self._remove_least_likely(path)
        return path

    def _remove_least_likely(self, new: CandidatePath) -> None:
        """Removes several paths at once, since ranking them takes time; keeps the new one."""
        others = [path for path in self._paths.values() if path is not new]
        for path in sorted(others, key=self._probability)[: self._policy.spare_paths + 1]:
            del self._paths[path.round]

    def _probability(self, path: CandidatePath) -> float:
        """Probability that its tokens beyond the committed ones are right."""
        length = len(self._committed)
        return 0.0 if path.dead or path.end < length else math.prod(path.confidences_ahead(length))

    def settle(self) -> None:
        """Compares newly committed tokens with every path."""
        self._best = -1, None
        for path in self._paths.values():
            if not path.dead and path.agreed < path.end:
                path.compare(self._committed, self.estimate)

    def best(self) -> CandidatePath | None:
        """The path to verify: the oldest round that agrees with the committed tokens.

        A path with tokens beyond the committed ones comes before a path without. A branch is
        younger than the path that it leaves.
        """
        length = len(self._committed)
        if self._best[0] != length:
            alive = [path for path in self._paths.values() if not path.dead and path.end >= length]
            best = min(alive, key=lambda path: (path.end == length, path.round), default=None)
            self._best = length, best
        return self._best[1]
