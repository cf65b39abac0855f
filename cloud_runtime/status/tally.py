"""What a cloud has done since it started: plain counters, the one source of every figure. Pure."""

from __future__ import annotations

import bisect
import copy
from collections import Counter
from dataclasses import dataclass, field
from typing import Literal

from edgespec.protocol import Verdict

LATENCIES = (
    0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0,
    20.0, 40.0, 80.0, 160.0, 640.0, 2560.0,
)  # fmt: skip
DURATIONS = (
    0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0, 40.0, 50.0, 60.0, 120.0, 240.0,
    480.0, 960.0, 1920.0, 7680.0,
)  # fmt: skip
"""Upper bounds in seconds, as vLLM has them for the metrics of the same names."""
SIZES = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0, 1024.0, 2048.0, 4096.0)
REASONS = {"end": "stop", "stop": "stop", "length": "length"}
"""How an answer finished, as vLLM names it. Otherwise it was `closed` by its device (a stop string,
or somebody there had enough), `silent`, ended by an `error`, or `drained`."""

Activity = Literal["run", "receive", "decide", "answer", "wait"]
"""What the loop does at a moment: a model runs; packets are taken, understood and replied to; the
next step is picked; choices become verdicts and leave; there is nothing to do."""


class Histogram:
    def __init__(self, bounds: tuple[float, ...]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        """By bucket, each up to its bound, the last without one."""
        self.sum = 0.0

    def add(self, value: float, times: int = 1) -> None:
        self.counts[bisect.bisect_left(self.bounds, value)] += times
        self.sum += value * times


@dataclass
class Record:
    """One session's figures. Times are the cloud's seconds; 0: not yet."""

    opened: float = 0.0
    first: float = 0.0
    """The first verdict."""
    last: float = 0.0
    tokens: int = 0
    at_first: int = 0
    """Tokens of the first verdict."""
    verified: int = 0
    """Drafted ids that the target looked at."""
    confirmed: int = 0
    """Of those, the target's own."""
    accepted: int = 0
    """Of those, the device's."""

    @property
    def rate(self) -> float:
        """Tokens a second after the first verdict."""
        spent = self.last - self.first
        return (self.tokens - self.at_first) / spent if spent > 0 else 0.0


def _latencies() -> Histogram:
    return Histogram(LATENCIES)


@dataclass
class Tally:
    opened: int = 0
    finished: Counter[str] = field(default_factory=Counter)
    """Sessions by reason."""
    refused: Counter[str] = field(default_factory=Counter)
    """Hellos and opens by error code."""
    dropped: Counter[str] = field(default_factory=Counter)
    """Packets by reason: `flood`, `garbage`; `gone`, `unread`: the cloud's own."""
    prompt_tokens: int = 0
    tokens: int = 0
    drafts: int = 0
    """Verdicts on at least one drafted id."""
    verified: int = 0
    confirmed: int = 0
    accepted: int = 0
    confirmed_at: list[int] = field(default_factory=list)
    """Confirmed ids by their place in the draft."""
    step_seconds: Histogram = field(default_factory=_latencies)
    step_rows: Histogram = field(default_factory=lambda: Histogram(SIZES))
    step_tokens: Histogram = field(default_factory=lambda: Histogram(SIZES))
    cloud_draft_steps: int = 0
    cloud_draft_seconds: float = 0.0
    activities: dict[str, float] = field(default_factory=dict)
    """Seconds of the loop by what it did; together all of its time."""
    first_token: Histogram = field(default_factory=_latencies)
    between_tokens: Histogram = field(default_factory=_latencies)
    whole: Histogram = field(default_factory=lambda: Histogram(DURATIONS))

    def verdict(self, record: Record, verdict: Verdict, now: float) -> None:
        """A step has committed tokens of a session."""
        count = len(verdict.tokens)
        if not record.first:
            self.prompt_tokens += verdict.base
            self.first_token.add(now - record.opened)
            record.first, record.at_first = now, count
        elif count:
            self.between_tokens.add((now - record.last) / count, count)
        record.last = now
        record.tokens += count
        self.tokens += count
        if verdict.verified:
            self.drafts += 1
            self.verified += verdict.verified
            self.confirmed += verdict.confirmed
            self.accepted += verdict.accepted
            self.confirmed_at += [0] * (verdict.confirmed - len(self.confirmed_at))
            for place in range(verdict.confirmed):
                self.confirmed_at[place] += 1
        record.verified += verdict.verified
        record.confirmed += verdict.confirmed
        record.accepted += verdict.accepted

    def end(self, record: Record, reason: str, now: float) -> None:
        """A session is over."""
        self.finished[REASONS.get(reason, reason)] += 1
        self.whole.add(now - record.opened)

    def step(self, rows: int, tokens: int, seconds: float) -> None:
        """The target has run."""
        self.step_seconds.add(seconds)
        self.step_rows.add(rows)
        self.step_tokens.add(tokens)

    def copy(self) -> Tally:
        return copy.deepcopy(self)
