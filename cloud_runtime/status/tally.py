"""Counters of a cloud since its start, the source of its metrics and of `/fleet`. Pure."""

from __future__ import annotations

import bisect
import copy
from collections import Counter
from dataclasses import dataclass, field
from typing import Literal

from edgespec.protocol import Verdict

LATENCY_BOUNDS_S = (
    0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0,
    20.0, 40.0, 80.0, 160.0, 640.0, 2560.0,
)  # fmt: skip
DURATION_BOUNDS_S = (
    0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0, 40.0, 50.0, 60.0, 120.0, 240.0,
    480.0, 960.0, 1920.0, 7680.0,
)  # fmt: skip
"""Upper bounds of histogram buckets, those of vLLM's metrics of the same names."""
SIZE_BOUNDS = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0, 1024.0, 2048.0, 4096.0)
REASONS = {"end": "stop", "stop": "stop", "length": "length"}
"""vLLM's names of the reasons for which an answer finished. Other sessions end as `closed` by the
device (a stop string, or the user interrupted), `silent`, `error`, `drained`, or `revoked` with
their device's key."""

Activity = Literal["run", "receive", "decide", "answer", "wait"]
"""Activities of the cloud's loop: run a model; receive packets, decode them and reply; choose the
next step; make verdicts and send them; wait."""


class Histogram:
    def __init__(self, bounds: tuple[float, ...]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        """Values in each bucket, bounds included; the last bucket has no bound."""
        self.sum = 0.0

    def add(self, value: float, times: int = 1) -> None:
        self.counts[bisect.bisect_left(self.bounds, value)] += times
        self.sum += value * times


@dataclass
class Record:
    """Figures of one session. Times are seconds of the cloud's clock."""

    opened: float = 0.0
    first_verdict_at: float = 0.0
    """0: none yet."""
    last_verdict_at: float = 0.0
    tokens: int = 0
    """Tokens committed."""
    first_tokens: int = 0
    """Tokens of the first verdict."""
    verified: int = 0
    """Draft tokens that the target verified."""
    confirmed: int = 0
    """Verified tokens that are the target's own."""
    accepted: int = 0
    """Confirmed tokens that the device drafted."""

    @property
    def rate(self) -> float:
        """Tokens per second after the first verdict."""
        seconds = self.last_verdict_at - self.first_verdict_at
        return (self.tokens - self.first_tokens) / seconds if seconds > 0 else 0.0


def _latencies() -> Histogram:
    return Histogram(LATENCY_BOUNDS_S)


@dataclass
class Tally:
    opened: int = 0
    finished: Counter[str] = field(default_factory=Counter)
    """Ended sessions by reason."""
    refused: Counter[str] = field(default_factory=Counter)
    """Refused Hello and Open messages by error code."""
    dropped: Counter[str] = field(default_factory=Counter)
    """Lost packets by reason: `flood` and `garbage` from devices, `gone` and `unread` to them."""
    prompt_tokens: int = 0
    tokens: int = 0
    drafts: int = 0
    """Verdicts on at least one draft token."""
    verified: int = 0
    confirmed: int = 0
    accepted: int = 0
    confirmed_by_position: list[int] = field(default_factory=list)
    """Confirmed tokens by their position in the draft."""
    step_seconds: Histogram = field(default_factory=_latencies)
    step_rows: Histogram = field(default_factory=lambda: Histogram(SIZE_BOUNDS))
    step_tokens: Histogram = field(default_factory=lambda: Histogram(SIZE_BOUNDS))
    cloud_draft_steps: int = 0
    cloud_draft_seconds: float = 0.0
    activities: dict[str, float] = field(default_factory=dict)
    """Seconds of the loop by activity; they add up to all of its time."""
    first_token: Histogram = field(default_factory=_latencies)
    between_tokens: Histogram = field(default_factory=_latencies)
    session_seconds: Histogram = field(default_factory=lambda: Histogram(DURATION_BOUNDS_S))

    def verdict(self, record: Record, verdict: Verdict, now: float) -> None:
        """Count a verdict of a session, whose `record` it updates."""
        count = len(verdict.tokens)
        if not record.first_verdict_at:
            self.prompt_tokens += verdict.base
            self.first_token.add(now - record.opened)
            record.first_verdict_at, record.first_tokens = now, count
        elif count:
            self.between_tokens.add((now - record.last_verdict_at) / count, count)
        record.last_verdict_at = now
        record.tokens += count
        self.tokens += count
        if verdict.verified:
            self.drafts += 1
            self.verified += verdict.verified
            self.confirmed += verdict.confirmed
            self.accepted += verdict.accepted
            self.confirmed_by_position += [0] * (
                verdict.confirmed - len(self.confirmed_by_position)
            )
            for position in range(verdict.confirmed):
                self.confirmed_by_position[position] += 1
        record.verified += verdict.verified
        record.confirmed += verdict.confirmed
        record.accepted += verdict.accepted

    def end(self, record: Record, reason: str, now: float) -> None:
        """Count the end of a session."""
        self.finished[REASONS.get(reason, reason)] += 1
        self.session_seconds.add(now - record.opened)

    def step(self, rows: int, tokens: int, seconds: float) -> None:
        """Count a step of the target over `tokens` tokens in `rows` sessions."""
        self.step_seconds.add(seconds)
        self.step_rows.add(rows)
        self.step_tokens.add(tokens)

    def copy(self) -> Tally:
        return copy.deepcopy(self)
