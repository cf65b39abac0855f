"""What the cloud does next for the sessions that are ready: verify so many ids, draft one more
beside the target, or wait.

The cloud never idles for nothing and never works for nothing. Each way of going on has an expected
number of tokens, over all sessions, and a time; the best ratio wins:

    verify at most k ids a session now   (1 + chances of its first k ids) / step(rows, 1 + k)
    wait until more are here, …          … the time until then comes on top
    draft beside up to k ids, …          … the steps of the draft come on top

Decoding is verifying no ids. All rows of a step are as wide as the longest, so up to k ids cost a
session nothing more where another has k: the verify budget of a step is one number. Pure: measured
times and chances in, a decision out.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

AHEAD = 8
"""Ids that are waited for, or drafted beside the target, at most."""
MOMENTS = 24
"""Times that are weighed for waiting, over the number of sessions: the more there are, the less one
wait is worth to all of them."""
SHORTEST = 0.001
"""Seconds; a shorter wait would only turn the loop."""


@dataclass(frozen=True)
class Outlook:
    """What is known of a session when its turn comes. Times in seconds, from now."""

    here: Sequence[float] = ()
    """For each id that is here the probability that it is right if those before it are."""
    coming: Sequence[float] = ()
    """When each further id is expected from the device, rising."""
    coming_confidence: float = 0.0
    """Probability that an expected id is right if those before it are."""
    cloud_draft: bool = False
    """The draft beside the target may draft for it."""
    cloud_draft_confidence: float = 0.0
    unread: int = 1
    """Tokens that the draft beside reads before its first id."""
    pending: int = 1
    """Committed tokens that its row runs before any ids."""
    lockstep: bool = False
    """In lock-step: what is here is verified, all of it."""
    weight: float = 1.0
    """What its tokens count."""


class Decision(NamedTuple):
    what: Literal["verify", "wait", "draft"]
    ids: int = 0
    """To verify, or to have drafted, for each session at most."""
    seconds: float = 0.0
    """How long to wait at most."""


class _Way(NamedTuple):
    tokens: float
    seconds: float
    decision: Decision

    @property
    def rate(self) -> float:
        return self.tokens / self.seconds


StepTime = Callable[[int, int], float]
"""Seconds of a step of the target over so many rows of such a width."""


def decide(
    outlooks: Sequence[Outlook],
    step: StepTime,
    cloud_draft: StepTime | None = None,
    widest: int = 1 << 16,
) -> Decision:
    """The way with the highest rate. `beside(texts, width)` is the time of a step of the draft
    beside the target that reads so many tokens of each text; `widest` bounds the width of a row.

    Of equal ways the first stands: verifying before waiting, fewer ids before more.
    """
    return max(_ways(outlooks, step, cloud_draft, widest), key=lambda way: way.rate).decision


def _ways(
    outlooks: Sequence[Outlook],
    step: StepTime,
    cloud_draft: StepTime | None,
    widest: int,
) -> Iterator[_Way]:
    lines = [_Line(outlook) for outlook in outlooks]
    for ids, tokens, width in _widths(lines, widest):
        yield _Way(tokens, step(len(lines), width), Decision("verify", ids))
    if cloud_draft is not None:
        yield from _drafting(lines, step, cloud_draft, widest)
    moments = sorted(
        {max(when, SHORTEST) for line in lines for when in line.outlook.coming[:AHEAD]}
    )
    for moment in moments[: max(1, min(AHEAD, MOMENTS // len(lines)))]:
        later = [line.at(moment) for line in lines]
        wait = Decision("wait", 0, moments[0])
        for _, tokens, width in _widths(later, widest):
            yield _Way(tokens, moment + step(len(lines), width), wait)


class _Line:
    """A session's ids: what verifying the first k of them is worth."""

    def __init__(self, outlook: Outlook, gains: list[float] | None = None, chance: float = 1.0):
        self.outlook = outlook
        self.chance = chance
        """That all ids are right."""
        if gains is None:
            gains = [outlook.weight]
            for confidence in outlook.here:
                self.chance *= confidence
                gains.append(gains[-1] + outlook.weight * self.chance)
        self.gains = gains

    @property
    def ids(self) -> int:
        return len(self.gains) - 1

    def gain(self, ids: int) -> float:
        return self.gains[min(ids, self.ids)]

    def width(self, ids: int) -> int:
        return self.outlook.pending + min(ids, self.ids)

    def longer(self, ids: int, confidence: float) -> _Line:
        """With so many more, each as sure."""
        gains, chance = list(self.gains), self.chance
        for _ in range(ids):
            chance *= confidence
            gains.append(gains[-1] + self.outlook.weight * chance)
        return _Line(self.outlook, gains, chance)

    def at(self, moment: float) -> _Line:
        """When so many seconds have passed."""
        come = sum(when <= moment for when in self.outlook.coming[:AHEAD])
        return self.longer(come, self.outlook.coming_confidence) if come else self


def _least(lines: Sequence[_Line]) -> int:
    """Ids that a step verifies at least: in lock-step all that are here."""
    return max((line.ids for line in lines if line.outlook.lockstep), default=0)


def _widths(lines: Sequence[_Line], widest: int) -> Iterator[tuple[int, float, int]]:
    """Ids a session at most, the tokens to expect, the width of the step. In time proportional to
    the ids, since there may be many sessions."""
    least = _least(lines)
    most = max(line.ids for line in lines)
    gained, pending, ended = [0.0] * (most + 1), [0] * (most + 1), 0
    for line in lines:
        before = 0.0
        for ids, gain in enumerate(line.gains):
            gained[ids] += gain - before
            before = gain
        pending[line.ids] = max(pending[line.ids], line.outlook.pending)
    longer = list(itertools.accumulate(reversed(pending), max))[::-1]
    tokens = 0.0
    for ids in range(most + 1):
        tokens += gained[ids]
        width = max(ended, longer[ids] + ids)  # of those that end before, and that go on
        ended = max(ended, pending[ids] + ids if pending[ids] else 0)
        if ids >= least and (width <= widest or ids == least):
            yield ids, tokens, width


def _drafting(
    lines: Sequence[_Line], step: StepTime, cloud_draft: StepTime, widest: int
) -> Iterator[_Way]:
    """Every session that may be drafted for is brought to a number of ids, step by step."""
    shortest = min((line.ids for line in lines if line.outlook.cloud_draft), default=None)
    if shortest is None:
        return
    seconds, least = 0.0, _least(lines)
    for ids in range(shortest + 1, shortest + AHEAD + 1):
        short = [line.outlook.cloud_draft and line.ids < ids for line in lines]
        first = (
            line.outlook.unread
            for line, drafts in zip(lines, short, strict=True)
            if drafts and line.ids + 1 == ids
        )
        seconds += cloud_draft(sum(short), max(first, default=1))
        later = [
            line.longer(ids - line.ids, line.outlook.cloud_draft_confidence) if drafts else line
            for line, drafts in zip(lines, short, strict=True)
        ]
        width = max(line.width(max(ids, least)) for line in later)
        if width > widest:
            return
        tokens = sum(line.gain(max(ids, least)) for line in later)
        yield _Way(tokens, seconds + step(len(lines), width), Decision("draft", ids))
