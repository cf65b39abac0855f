"""Upper bound for streaming: the best speed of an idealised device and cloud.

The device drafts without pause. Whenever the cloud is free it verifies the draft tokens that have
arrived, waits for more, or decodes. Each draft token is right with probability `agreement`,
independently of the others. The first wrong one ends the drafted path. The verdict then starts
another path, whose first token arrives a round trip and a draft step later. Branches, hints,
overheads and confidences are left out.

The state at each decision is the number of draft tokens that the path is ahead of the committed
tokens. It is a real number, and negative while the first tokens are on their way. This is a
Markov decision process of one dimension. It starts again whenever a path ends, so the token rate is
that of one such cycle. Dinkelbach's iteration finds the policy that maximises it (Management
Science 13, 1967): solve for a rate, take the rate of the solution, and repeat until both agree.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

MAX_VERIFIED_TOKENS = 16
"""Most draft tokens that one step verifies."""
MAX_AHEAD_TOKENS = 48
"""Draft tokens beyond which being further ahead gains nothing."""
STATE_COUNT = 4000
MAX_AGREEMENT_RATIO = 0.995
ITERATION_COUNT = 20
Floats = npt.NDArray[np.floating]


class _Actions(NamedTuple):
    """Effects of verifying each number of tokens (columns) in each state (rows)."""

    tokens: Floats
    """[numbers] expected tokens that the step commits."""
    ms: Floats
    """[states, numbers] time of waiting and of the step."""
    continues: Floats
    """[numbers] probability that the path continues."""
    next: npt.NDArray[np.int64]
    """[states, numbers] state after the step, if the path continues."""


def sketch(
    agreement: float, target_ms: float, token_ms: float, draft_ms: float, rtt_ms: float
) -> float:
    """Tokens/s of the best policy; `token_ms` is the time of each further token of a step."""
    actions = _actions(min(agreement, MAX_AGREEMENT_RATIO), target_ms, token_ms, draft_ms, rtt_ms)
    tokens_per_ms = 1 / target_ms
    for _ in range(ITERATION_COUNT):
        tokens, spent_ms = _cycle(actions, _policy(actions, tokens_per_ms))
        better = tokens / spent_ms
        if better <= tokens_per_ms * (1 + 1e-6):
            break
        tokens_per_ms = better
    return 1e3 * tokens_per_ms


def _actions(
    agreement: float, target_ms: float, token_ms: float, draft_ms: float, rtt_ms: float
) -> _Actions:
    behind = rtt_ms / draft_ms
    states_per_token = min(8.0, STATE_COUNT / (behind + MAX_AHEAD_TOKENS))
    last_state = int((behind + MAX_AHEAD_TOKENS) * states_per_token)
    ahead = -behind + np.arange(last_state + 1) / states_per_token
    counts = np.arange(MAX_VERIFIED_TOKENS + 1)
    steps = target_ms + token_ms * counts
    waits = np.maximum(0.0, counts - ahead[:, None]) * draft_ms
    waits[:, 0] = 0.0
    ms = waits + steps
    further = ahead[:, None] + ms / draft_ms - (counts + 1)
    # A path further behind than a new one would be is replaced by a new one: the state is >= 0.
    next_ = np.clip((further + behind) * states_per_token + 1e-9, 0, len(ahead) - 1)
    continues = agreement ** (counts + 1.0)
    expected = np.cumsum(agreement ** (counts * 1.0))
    return _Actions(expected, ms, continues, next_.astype(np.int64))


def _policy(actions: _Actions, tokens_per_ms: float) -> npt.NDArray[np.int64]:
    """Best number of tokens to verify in each state if a millisecond costs `tokens_per_ms`."""
    gains = actions.tokens - tokens_per_ms * actions.ms
    worth = np.zeros(len(gains))
    while True:
        each = gains + actions.continues * worth[actions.next]
        best = each.max(axis=1)
        if np.abs(best - worth).max() < 1e-7:
            return np.asarray(each.argmax(axis=1), np.int64)
        worth = best


def _cycle(actions: _Actions, policy: npt.NDArray[np.int64]) -> tuple[float, float]:
    """Expected tokens and milliseconds from the start of a path to its end."""
    states = np.arange(len(policy))
    gain = np.stack([actions.tokens[policy], actions.ms[states, policy]])
    continues, next_ = actions.continues[policy], actions.next[states, policy]
    total = gain
    while True:
        more = gain + continues * total[:, next_]
        if np.abs(more - total).max() < 1e-6:
            return float(more[0, 0]), float(more[1, 0])
        total = more
