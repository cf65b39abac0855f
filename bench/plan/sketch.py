"""The best that streaming alone could do: an upper bound on paper, beside what the loops do.

A device drafts on and on; the cloud, whenever it is free, verifies ids that are here, waits for
more, or decodes. Each id is right with probability `agreement`, independently; the first wrong one
ends the path, and the verdict that says so starts another, whose first id is here a round trip and
a draft step later. No branches, hints, overheads or confidences.

Between two decisions all that counts is how many ids the path is ahead of the committed text, a
real number below 0 while they travel. That is a Markov decision process of one dimension; where a
path ends it begins anew, so the rate of tokens is that of one such cycle, and the policy that
maximises it is found by Dinkelbach's iteration (Management Science 13, 1967): solve for a rate,
take the rate of the solution, until they agree.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

MOST = 16
"""Ids verified in one step at most."""
AHEAD = 48
"""Ids beyond which being further ahead gains nothing."""
STATES = 4000
Floats = npt.NDArray[np.floating]


class _Ways(NamedTuple):
    """For each state (rows) and number of ids to verify (columns)."""

    tokens: Floats
    """Expected, that the step commits."""
    seconds: Floats
    """Of the wait and the step; here in milliseconds like all else."""
    on: Floats
    """Chance that the path goes on."""
    next: npt.NDArray[np.int64]
    """The state then."""


def sketch(
    agreement: float, target_ms: float, token_ms: float, draft_ms: float, rtt_ms: float
) -> float:
    """Tokens a second of the best policy; `token_ms` is that of each further token of a step."""
    ways = _ways(min(agreement, 0.995), target_ms, token_ms, draft_ms, rtt_ms)
    rate = 1 / target_ms
    for _ in range(20):
        tokens, spent = _cycle(ways, _policy(ways, rate))
        better = tokens / spent
        if better <= rate * (1 + 1e-6):
            break
        rate = better
    return 1e3 * rate


def _ways(
    agreement: float, target_ms: float, token_ms: float, draft_ms: float, rtt_ms: float
) -> _Ways:
    behind = rtt_ms / draft_ms
    grain = min(8.0, STATES / (behind + AHEAD))  # states to an id
    ahead = -behind + np.arange(int((behind + AHEAD) * grain) + 1) / grain
    counts = np.arange(MOST + 1)
    steps = target_ms + token_ms * counts
    waits = np.maximum(0.0, counts - ahead[:, None]) * draft_ms
    waits[:, 0] = 0.0
    seconds = waits + steps
    further = ahead[:, None] + seconds / draft_ms - (counts + 1)
    # A path that falls behind what a new one would be is replaced by it: never below state 0.
    next_ = np.clip((further + behind) * grain + 1e-9, 0, len(ahead) - 1).astype(np.int64)
    on = agreement ** (counts + 1.0)
    return _Ways(np.cumsum(agreement ** (counts * 1.0)), seconds, on, next_)


def _policy(ways: _Ways, rate: float) -> npt.NDArray[np.int64]:
    """The best number to verify in each state if time is worth `rate` tokens."""
    gains = ways.tokens - rate * ways.seconds
    worth = np.zeros(len(gains))
    while True:
        each = gains + ways.on * worth[ways.next]
        best = each.max(axis=1)
        if np.abs(best - worth).max() < 1e-7:
            return np.asarray(each.argmax(axis=1), np.int64)
        worth = best


def _cycle(ways: _Ways, policy: npt.NDArray[np.int64]) -> tuple[float, float]:
    """Expected tokens and time from a path's beginning to its end."""
    rows = np.arange(len(policy))
    gain = np.stack([ways.tokens[policy], ways.seconds[rows, policy]])
    on, next_ = ways.on[policy], ways.next[rows, policy]
    total = gain
    while True:
        more = gain + on * total[:, next_]
        if np.abs(more - total).max() < 1e-6:
            return float(more[0, 0]), float(more[1, 0])
        total = more
