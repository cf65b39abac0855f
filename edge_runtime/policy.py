"""Choice of the next draft step: the steps that are most likely to save the target a step. Pure.

A draft step adds one token to a path of a tree, so its worth is the probability that the whole path
is right. A path saves a target step only once it is ahead of the cloud: while a token travels, the
cloud goes on by itself. Until then every further token must be right before any of them counts, so
a path that is not ahead yet is worth what it leads to:

    worth = probability of the path * acceptance ** max(0, lead - tokens ahead)
    lead  = round trip / (target step - draft step)

The rule does not depend on the token that is drawn next, so it cannot bias the text.
"""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple, TypeVar

from edge_runtime.tree import DraftedPath, Tree
from edgespec.policies import DraftPolicy

LONGEST_LEAD_TOKENS = 1e6
"""Lead where a draft step takes as long as a target step."""
T = TypeVar("T")


@dataclass(frozen=True)
class DraftTimings:
    """Measured times in seconds, and the acceptance rate of the draft."""

    round_trip: float
    step: float
    """Time of a target step that decodes one token."""
    draft: float
    """Time of a draft step over one path."""
    acceptance: float
    together: tuple[float, ...] = (1.0,)
    """Time of a draft step over one, two, … paths, relative to one."""

    @property
    def lead(self) -> float:
        """Tokens that the cloud commits by itself before a new path can get ahead of it."""
        if self.round_trip <= 0:
            return 0.0
        gained = self.step - self.draft
        if gained <= 0:
            return LONGEST_LEAD_TOKENS
        return min(self.round_trip / gained, LONGEST_LEAD_TOKENS)

    @property
    def overtaking(self) -> float:
        """Probability that a new path gets ahead of the cloud."""
        return float(self.acceptance ** (1 + min(self.lead, 100.0)))


class Choice(NamedTuple):
    """A draft step: the path to extend, or to fork first."""

    worth: float
    path: DraftedPath
    place: int | None = None
    """Place in `path` whose best runner-up begins a fork; None: the path itself is extended."""


def choices(
    tree: Tree, timings: DraftTimings, policy: DraftPolicy, *, most: int, branches: bool = True
) -> list[Choice]:
    """The steps of one tree that are worth drafting, in no particular order.

    `most` is the number of tokens that a path may have ahead of the committed ones.
    """
    floor = max(policy.worth_floor * timings.acceptance**timings.lead, policy.least_worth)
    return [step for step in _steps(tree, timings, most, branches) if step.worth >= floor]


def best_together(
    options: Iterable[T], together: Sequence[float], worth: Callable[[T], float]
) -> list[T]:
    """The options that one batched step should take: the most worth for its time, best first.

    `together` is the relative time of a step over one, two, … options.
    """
    best = heapq.nlargest(len(together), options, key=worth)
    totals = itertools.accumulate(map(worth, best))
    rates = [total / time for total, time in zip(totals, together, strict=False)]
    return best[: 1 + rates.index(max(rates))] if rates else []


def _steps(tree: Tree, timings: DraftTimings, most: int, branches: bool) -> Iterator[Choice]:
    lead, acceptance = timings.lead, timings.acceptance
    for path in tree.paths:
        ahead = len(path.ahead)
        if not path.stuck and ahead < most:
            yield Choice(path.chance * acceptance ** max(0.0, lead - ahead), path)
    if not branches:
        return
    path = tree.main
    before = itertools.accumulate(path.confidences, lambda a, b: a * b, initial=1.0)
    for place, (runners_up, chance) in enumerate(zip(path.runners_up, before, strict=False)):
        if runners_up and place + 1 < most:
            worth = chance * runners_up[0][1] * acceptance ** max(0.0, lead - place - 1)
            yield Choice(worth, path, place)
