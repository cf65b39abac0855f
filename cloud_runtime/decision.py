"""What a session does next: verify so many ids, draft one more beside the target, or wait.

The cloud never idles for nothing and never works for nothing. Each way of going on has an expected
number of tokens and a time; the best ratio wins:

    verify k ids now                 (1 + sum of their chances) / step(1 + k)
    wait for i more, then verify     … the time until they are here comes on top
    draft i beside, then verify      … i steps of the draft come on top

Decoding is verifying no ids. Pure: measured times and chances in, a decision out.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

AHEAD = 8
"""Ids that are waited for, or drafted beside the target, at most."""

SHORTEST = 0.001
"""Seconds; a shorter wait would only turn the loop."""


@dataclass(frozen=True)
class Outlook:
    """What is known when a session's turn comes. Times in seconds, from now."""

    here: Sequence[float] = ()
    """For each id that is here the probability that it is right if those before it are."""
    coming: Sequence[float] = ()
    """When each further id is expected from the device, rising."""
    coming_sure: float = 0.0
    """Probability that an expected id is right if those before it are."""
    beside: float = 0.0
    """A step of the draft beside the target; 0: it may not draft for this session."""
    beside_sure: float = 0.0
    company: bool = False
    """Others run a step in any case, so that waiting means missing it."""


class Decision(NamedTuple):
    what: Literal["verify", "wait", "draft"]
    ids: int = 0
    """To verify."""
    seconds: float = 0.0
    """How long to wait at most."""


class _Way(NamedTuple):
    tokens: float
    seconds: float
    decision: Decision

    @property
    def rate(self) -> float:
        return self.tokens / self.seconds


def decide(outlook: Outlook, step: Callable[[int], float]) -> Decision:
    """The way with the highest rate; `step(n)` is the time of a target step over n tokens.

    Of equal ones the first stands: verifying before waiting, fewer ids before more.
    """
    return max(_ways(outlook, step), key=lambda way: way.rate).decision


def _ways(outlook: Outlook, step: Callable[[int], float]) -> Iterator[_Way]:
    chances = list(itertools.accumulate(outlook.here, lambda a, b: a * b))
    tokens = 1.0
    yield _Way(tokens, step(1), Decision("verify", 0))
    for count, chance in enumerate(chances, 1):
        tokens += chance
        yield _Way(tokens, step(1 + count), Decision("verify", count))
    here, all_right = len(chances), chances[-1] if chances else 1.0
    further = range(1, AHEAD + 1)
    if outlook.beside:
        gained, chance = tokens, all_right
        for more in further:
            chance *= outlook.beside_sure
            gained += chance
            spent = more * outlook.beside + step(1 + here + more)
            yield _Way(gained, spent, Decision("draft"))
    if outlook.company:
        return
    gained, chance = tokens, all_right
    for more, seconds in zip(further, outlook.coming, strict=False):
        chance *= outlook.coming_sure
        gained += chance
        wait = Decision("wait", 0, max(outlook.coming[0], SHORTEST))
        yield _Way(gained, max(seconds, 0.0) + step(1 + here + more), wait)
