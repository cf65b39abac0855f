"""Drafts by expected speed at each distance, and by what they cost the cloud. Pure arithmetic.

The expected speed is that of one device alone with the cloud (`bench.plan.sketch`), an upper bound.
The number of devices is that of a cloud which computes all the time: for `BATCH_ROWS` sessions in
a step it verifies as many draft tokens as give the most tokens for its time. Neither knows whether
errors come in groups: each draft token is right with the same probability.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from bench.plan.sketch import sketch

BATCH_ROWS = 8
"""Sessions in a step of a busy cloud."""
BATCH_TOKENS = (1, 2, 3, 5, 9)
"""Tokens of each session in such a step, one more than draft tokens."""
NEAR_RATIO = 0.95
"""Ratio to the fastest from which a draft counts as equally fast: neither steps nor the expected
speed are more certain, and hours of training should gain more."""
WORTH_RATIO = 1.02
"""Least gain over the target alone for which a draft is worth anything."""
_BISECTIONS = 12


@dataclass(frozen=True)
class TargetTimes:
    """Steps of the target."""

    step_ms: float
    """One token of one session."""
    token_ms: float
    """Each further token of it."""
    batch_ms: Mapping[int, float]
    """A step of `BATCH_ROWS` sessions, by the tokens of each."""


@dataclass(frozen=True)
class Draft:
    """One draft that could be made."""

    name: str
    profile: str
    layers: int
    disk_bytes: int
    memory_bytes: int
    agreement: float
    estimate: str
    """Source of an estimated agreement; empty: measured here."""
    step_ms: float
    commands: tuple[str, ...]

    @property
    def shown_agreement(self) -> str:
        """The agreement, with a sign before an estimate."""
        return f"{'~' if self.estimate else ''}{self.agreement:.3f}"


@dataclass(frozen=True)
class Ranked:
    """A draft with its expected figures."""

    draft: Draft
    step_ratio: float
    """Draft step, relative to the target's."""
    tokens_per_s: Sequence[float]
    """Tokens a second at each distance."""
    gain: float
    """Geometric mean over the distances of the speed relative to the target alone."""
    cloud_ms: float
    """The busy cloud's time for a committed token."""
    devices: float
    """Devices that it serves, relative to the target alone."""


def expected(draft: Draft, times: TargetTimes, rtts_ms: Sequence[float]) -> Ranked:
    """The figures of one draft."""
    speeds = [
        sketch(draft.agreement, times.step_ms, times.token_ms, draft.step_ms, rtt)
        for rtt in rtts_ms
    ]
    gains = [math.log(speed * times.step_ms / 1e3) for speed in speeds]
    cost = cloud_ms(draft.agreement, times)
    return Ranked(
        draft=draft,
        step_ratio=draft.step_ms / times.step_ms,
        tokens_per_s=speeds,
        gain=math.exp(sum(gains) / len(gains)),
        cloud_ms=cost,
        devices=cloud_ms(0.0, times) / cost,
    )


def cloud_ms(agreement: float, times: TargetTimes) -> float:
    """Least time of a busy cloud for a committed token, over the numbers of draft tokens."""
    return min(
        step_ms / (BATCH_ROWS * sum(agreement**k for k in range(tokens)))
        for tokens, step_ms in times.batch_ms.items()
    )


def ranked(drafts: Sequence[Draft], times: TargetTimes, rtts_ms: Sequence[float]) -> list[Ranked]:
    """The drafts, best first. Of those that are about as fast as the fastest, those whose agreement
    is measured are first, then those that cost the cloud least, then the smallest."""
    found = [expected(draft, times, rtts_ms) for draft in drafts]
    fastest = max(each.gain for each in found)

    def order(each: Ranked) -> tuple[float, ...]:
        if each.gain >= NEAR_RATIO * fastest:
            estimated = bool(each.draft.estimate)
            return 0, estimated, -round(each.devices, 2), each.draft.disk_bytes
        return 1, -each.gain, each.draft.disk_bytes

    return sorted(found, key=order)


def break_even(
    draft: Draft, gain: float, times: TargetTimes, rtts_ms: Sequence[float]
) -> float | None:
    """Agreement at which a draft reaches a gain; None if it cannot."""
    low, high = 0.0, 1.0
    if expected(replace(draft, agreement=high), times, rtts_ms).gain < gain:
        return None
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2
        if expected(replace(draft, agreement=middle), times, rtts_ms).gain < gain:
            low = middle
        else:
            high = middle
    return high
