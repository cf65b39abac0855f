"""The cloud's next action for the ready sessions: verify, wait for draft tokens, or draft one more.

Each option has an expected number of committed tokens, over all sessions, and a duration. The
option with the highest ratio wins:

    verify at most k draft tokens a session  (1 + chances of its first k tokens) / step(rows, 1 + k)
    wait until more tokens have arrived      adds the time until then
    cloud draft up to k tokens a session     adds the steps of the cloud draft

Decoding is verifying no draft tokens. All rows of a step are as wide as the longest, so k draft
tokens cost a session nothing extra where another session has k. One number k serves all sessions.

Pure: measured times and probabilities in, a decision out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

from edgespec.policies import SchedulerPolicy

UNBOUNDED_TOKENS = 1 << 16


@dataclass(frozen=True)
class Outlook:
    """A session's input to the decision. Times are seconds from now."""

    arrived: Sequence[float] = ()
    """Probability of each draft token that is here to be right if those before it are."""
    expected_s: Sequence[float] = ()
    """Arrival time of each further draft token of the device, rising."""
    expected_confidence: float = 0.0
    """Probability that an expected token is right if those before it are."""
    cloud_draft: bool = False
    """True if the cloud draft may draft for the session."""
    cloud_draft_confidence: float = 0.0
    """Probability that a token of the cloud draft is right if those before it are."""
    unread_tokens: int = 1
    """Tokens that the cloud draft reads before its first draft token."""
    pending_tokens: int = 1
    """Committed tokens that the row runs before any draft tokens."""
    lockstep: bool = False
    """True if all draft tokens that are here must be verified."""
    weight: float = 1.0
    """Weight of the session's tokens."""


class Decision(NamedTuple):
    what: Literal["verify", "wait", "draft"]
    ids: int = 0
    """Draft tokens to verify, or to have drafted, for each session at most."""
    seconds: float = 0.0
    """Longest wait."""


class _Option(NamedTuple):
    tokens: float
    seconds: float
    decision: Decision

    @property
    def rate(self) -> float:
        return self.tokens / self.seconds


StepTime = Callable[[int, int], float]
"""Seconds of a step over that many rows of that width."""


def decide(
    outlooks: Sequence[Outlook],
    step: StepTime,
    cloud_draft: StepTime | None = None,
    widest: int = UNBOUNDED_TOKENS,
    policy: SchedulerPolicy = SchedulerPolicy(),
) -> Decision:
    """Returns the option with the highest rate; the first one of several with the same rate.

    `step` is the duration of a step of the target. `cloud_draft(sessions, width)` is the duration
    of a step of the cloud draft that reads `width` tokens of each session. `widest` bounds the
    width of a row. Options come in this order: verify (few tokens first), draft, wait.
    """
    options = _options(outlooks, step, cloud_draft, widest, policy)
    return max(options, key=lambda option: option.rate).decision


def _options(
    outlooks: Sequence[Outlook],
    step: StepTime,
    cloud_draft: StepTime | None,
    widest: int,
    policy: SchedulerPolicy,
) -> Iterator[_Option]:
    rows = [_Row(outlook) for outlook in outlooks]
    for ids, tokens, width in _budgets(rows, widest):
        yield _Option(tokens, step(len(rows), width), Decision("verify", ids))
    if cloud_draft is not None:
        yield from _drafting(rows, step, cloud_draft, widest, policy.lookahead_tokens)
    yield from _waiting(rows, step, widest, policy)


class _Row:
    """A session's row: the expected tokens of verifying its first k draft tokens."""

    def __init__(self, outlook: Outlook, gains: list[float] | None = None, chance: float = 1.0):
        self.outlook = outlook
        self.chance = chance
        """Probability that all its draft tokens are right."""
        if gains is None:
            gains = [outlook.weight]
            for confidence in outlook.arrived:
                self.chance *= confidence
                gains.append(gains[-1] + outlook.weight * self.chance)
        self.gains = gains
        """Weighted tokens for k = 0, 1, …."""

    @property
    def ids(self) -> int:
        """Draft tokens."""
        return len(self.gains) - 1

    def gain(self, ids: int) -> float:
        return self.gains[min(ids, self.ids)]

    def width(self, ids: int) -> int:
        return self.outlook.pending_tokens + min(ids, self.ids)

    def extended(self, ids: int, confidence: float) -> _Row:
        """The row with that many further tokens of the same confidence."""
        gains, chance = list(self.gains), self.chance
        for _ in range(ids):
            chance *= confidence
            gains.append(gains[-1] + self.outlook.weight * chance)
        return _Row(self.outlook, gains, chance)

    def after(self, seconds: float, lookahead: int) -> _Row:
        """The row with the tokens that will have arrived by then."""
        more = sum(when <= seconds for when in self.outlook.expected_s[:lookahead])
        return self.extended(more, self.outlook.expected_confidence) if more else self


def _fewest(rows: Sequence[_Row]) -> int:
    """Draft tokens that the step must verify: all of those in lockstep."""
    return max((row.ids for row in rows if row.outlook.lockstep), default=0)


def _budgets(rows: Sequence[_Row], widest: int) -> Iterator[tuple[int, float, int]]:
    """Each verify budget k with the expected tokens and the width of the step.

    Takes time proportional to the draft tokens plus a few row shapes, also for many sessions.
    """
    most, fewest = max(row.ids for row in rows), _fewest(rows)
    gained = [0.0] * (most + 1)
    for row in rows:
        before = 0.0
        for ids, gain in enumerate(row.gains):
            gained[ids] += gain - before
            before = gain
    shapes = {(row.outlook.pending_tokens, row.ids) for row in rows}
    tokens = 0.0
    for ids in range(most + 1):
        tokens += gained[ids]
        width = max(pending + min(ids, drafted) for pending, drafted in shapes)
        if ids == fewest or (ids > fewest and width <= widest):
            yield ids, tokens, width


def _waiting(
    rows: Sequence[_Row], step: StepTime, widest: int, policy: SchedulerPolicy
) -> Iterator[_Option]:
    """Waiting for one of the next arrivals. Whichever of them pays, the wait ends at the first."""
    lookahead = policy.lookahead_tokens
    arrivals = {
        max(when, policy.shortest_wait_s)
        for row in rows
        for when in row.outlook.expected_s[:lookahead]
    }
    moments = sorted(arrivals)
    for moment in moments[: max(1, min(lookahead, policy.wait_options_count // len(rows)))]:
        later = [row.after(moment, lookahead) for row in rows]
        for _, tokens, width in _budgets(later, widest):
            seconds = moment + step(len(rows), width)
            yield _Option(tokens, seconds, Decision("wait", 0, moments[0]))


def _drafting(
    rows: Sequence[_Row], step: StepTime, cloud_draft: StepTime, widest: int, lookahead: int
) -> Iterator[_Option]:
    """Bringing each session that the cloud drafts for to a number of draft tokens."""
    shortest = min((row.ids for row in rows if row.outlook.cloud_draft), default=None)
    if shortest is None:
        return
    seconds, fewest = 0.0, _fewest(rows)
    for ids in range(shortest + 1, shortest + lookahead + 1):
        lacking = [row.outlook.cloud_draft and row.ids < ids for row in rows]
        unread = (
            row.outlook.unread_tokens
            for row, lacks in zip(rows, lacking, strict=True)
            if lacks and row.ids + 1 == ids
        )
        seconds += cloud_draft(sum(lacking), max(unread, default=1))
        later = [
            row.extended(ids - row.ids, row.outlook.cloud_draft_confidence) if lacks else row
            for row, lacks in zip(rows, lacking, strict=True)
        ]
        verified = max(ids, fewest)
        width = max(row.width(verified) for row in later)
        if width > widest:
            return
        tokens = sum(row.gain(verified) for row in later)
        yield _Option(tokens, seconds + step(len(rows), width), Decision("draft", ids))
