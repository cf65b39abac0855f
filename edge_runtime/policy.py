"""What to draft next: the step that is likeliest to save the cloud one. Pure.

A step names one more id of a path, so it is worth the chance that all of the path is right. A path
can only save a step of the target once it is ahead of it: while an id travels, the cloud goes on by
itself. Until then each further id of a path must come true before any of it counts, so the worth of
what lies closer is that of what it leads to:

    worth = chance of the path * acceptance ** max(0, lead - ids ahead)
    lead  = round trip / (target step - draft step)

The rule sees nothing of the id that is drawn next, so it cannot tilt the text.
"""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

from edge_runtime.tree import DraftedPath, Tree

FLOOR = 0.06
"""Worth, beyond what the lead takes from every step, below which one is not drafted: one in 16
would save the target a step. Lower ones gain next to nothing and cost energy."""
LEAST = 1e-3
"""Worth below which nothing is drafted at any distance."""
FAR = 1e6


@dataclass(frozen=True)
class DraftTimings:
    """Measured times in seconds, and how often the draft is right."""

    round_trip: float
    step: float
    """Of a token that the cloud writes by itself."""
    draft: float
    acceptance: float
    together: tuple[float, ...] = (1.0,)
    """Time of a draft step over one, two, … paths, relative to one."""

    @property
    def lead(self) -> float:
        """Ids that the cloud commits by itself before a fresh path can overtake it."""
        if self.round_trip <= 0:
            return 0.0
        gained = self.step - self.draft
        return min(self.round_trip / gained, FAR) if gained > 0 else FAR

    @property
    def overtaking(self) -> float:
        """Chance that a fresh path gets ahead of the cloud."""
        return float(self.acceptance ** (1 + min(self.lead, 100.0)))


class Choice(NamedTuple):
    """A path to make longer, after its runner-up at `place` was taken if that is not None."""

    worth: float
    path: DraftedPath
    place: int | None


def choose(tree: Tree, pace: DraftTimings, *, most: int, branches: bool = True) -> list[Choice]:
    """The best steps, best first, as many together as bring most for their time; none where
    nothing is worth one. `most` is the number of ids that a path may have ahead."""
    steps = _steps(tree, pace, most, branches)
    best = heapq.nlargest(len(pace.together), steps, key=lambda choice: choice.worth)
    floor = max(FLOOR * pace.acceptance**pace.lead, LEAST)
    best = [choice for choice in best if choice.worth >= floor]
    worths = itertools.accumulate(choice.worth for choice in best)
    rates = [worth / time for worth, time in zip(worths, pace.together, strict=False)]
    return best[: 1 + rates.index(max(rates))] if rates else []


def _steps(tree: Tree, pace: DraftTimings, most: int, branches: bool) -> Iterator[Choice]:
    lead, acceptance = pace.lead, pace.acceptance
    for path in tree.paths:
        ahead = len(path.ahead)
        if not path.stuck and ahead < most:
            yield Choice(path.chance * acceptance ** max(0.0, lead - ahead), path, None)
    if not branches:
        return
    path = tree.main
    before = itertools.accumulate(path.confidences, lambda a, b: a * b, initial=1.0)
    for place, (others, chance) in enumerate(zip(path.runners_up, before, strict=False)):
        if others and place + 1 < most:
            worth = chance * others[0][1] * acceptance ** max(0.0, lead - place - 1)
            yield Choice(worth, path, place)
