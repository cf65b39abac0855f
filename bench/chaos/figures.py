"""Figures of a run."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise

from bench.chaos.device_process import Report
from bench.chaos.toy import target
from bench.lab.percentile import percentile
from engines.alone import write_alone

KEPT_SENTENCES_COUNT = 20
NEAR_CUT_S = 0.1
"""Time after a cut within which the gap that it causes begins."""


@dataclass
class CloudUse:
    """Memory and file descriptors of the clouds of one world."""

    first_mb: float = 0.0
    """Resident memory of the first cloud when it listens."""
    peak_mb: float = 0.0
    final_mb: float = 0.0
    """Resident memory of the last cloud, after the last answer."""
    first_files: int = 0
    peak_files: int = 0
    final_files: int = 0


@dataclass
class ChaosFigures:
    minutes: float
    seed: int
    faults: dict[str, int]
    """Number of faults by kind."""
    answers: int
    tokens: int
    wrong_tokens: int
    lost_answers: int
    unverified_answers: int
    """Answers that ended without a cloud; only their committed tokens are compared."""
    abandoned_answers: int
    """Answers of devices that were killed."""
    resumed: int
    """Times that an answer was resumed or opened again."""
    crashes: int
    """Processes that ended without a fault that ends them."""
    recovery_count: int
    recovery_p50_s: float
    recovery_p99_s: float
    """Time from a cut link, without another fault near it, to the next token."""
    clouds: dict[str, CloudUse] = field(default_factory=dict)
    """Use of memory and files, by world."""
    trouble: list[str] = field(default_factory=list)
    """What was wrong or lost, in sentences."""

    @property
    def failed(self) -> bool:
        return bool(self.wrong_tokens or self.lost_answers or self.crashes)


class Ledger:
    """Counts faults and answers of all worlds; any thread may call it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._target = target()
        self.faults: Counter[str] = Counter()
        self.counts: Counter[str] = Counter()
        self.recoveries_s: list[float] = []
        self.trouble: list[str] = []

    def fault(self, kind: str) -> None:
        with self._lock:
            self.faults[kind] += 1

    def crash(self, sentence: str) -> None:
        with self._lock:
            self.counts["crashes"] += 1
            self._note(sentence)

    def lost(self, report: Report, reason: str) -> None:
        with self._lock:
            self.counts["lost"] += 1
            self._note(f"lost after {len(report.tokens or [])} tokens: {reason}")

    def ended(self, report: Report, cuts: Sequence[float]) -> None:
        """Compares an answer with the target alone. `cuts`: times of cuts that are measured."""
        request, tokens = report.request, report.tokens or []
        with self._lock:
            right = write_alone(self._target, request.prompt, request.max_tokens, request.sampling)
            if report.error or report.unverified:
                right = right[: len(tokens)]
            wrong = sum(a != b for a, b in zip(tokens, right, strict=False))
            wrong += abs(len(tokens) - len(right))
            self.counts.update(answers=1, tokens=len(tokens), wrong=wrong, resumed=report.resumed)
            self.counts["unverified"] += report.unverified > 0
            if wrong:
                self._note(f"{wrong} of {len(right)} tokens wrong: {request}")
            self.recoveries_s += recoveries(report.began, report.times, cuts)
        if report.error:
            self.lost(report, report.error)

    def _note(self, sentence: str) -> None:
        if len(self.trouble) < KEPT_SENTENCES_COUNT:
            self.trouble.append(sentence)

    def figures(self, minutes: float, seed: int, clouds: dict[str, CloudUse]) -> ChaosFigures:
        counts = self.counts
        return ChaosFigures(
            minutes=round(minutes, 2),
            seed=seed,
            faults=dict(sorted(self.faults.items())),
            answers=counts["answers"],
            tokens=counts["tokens"],
            wrong_tokens=counts["wrong"],
            lost_answers=counts["lost"],
            unverified_answers=counts["unverified"],
            abandoned_answers=counts["abandoned"],
            resumed=counts["resumed"],
            crashes=counts["crashes"],
            recovery_count=len(self.recoveries_s),
            recovery_p50_s=round(percentile(self.recoveries_s, 0.5), 3),
            recovery_p99_s=round(percentile(self.recoveries_s, 0.99), 3),
            clouds=clouds,
            trouble=self.trouble,
        )


def recoveries(began: float, times: Sequence[float], cuts: Sequence[float]) -> list[float]:
    """Seconds from each cut to the token that ends the longest gap which begins near it.

    Cuts outside the answer, or after its last token, do not count.
    """
    found = []
    for cut in cuts:
        if not began <= cut <= (times[-1] if times else 0.0):
            continue
        points = [max(began, cut), *(time for time in times if time > cut)]
        gaps = [
            (after - before, after - cut)
            for before, after in pairwise(points)
            if before <= cut + NEAR_CUT_S
        ]
        found.append(max(gaps)[1])
    return found
