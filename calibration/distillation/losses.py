"""The training objectives of a draft: accepted tokens per round, and acceptance of sampled tokens.

Let `a_i` be the probability that the draft's token at position i is the target's. A round of γ
tokens that starts after position s accepts `Σ_k Π_{j ≤ k} a_{s+j}` tokens on average. The gradient
of this sum is that of `Σ_i w_i log a_i`, where `w_i` is the expected number of accepted tokens that
depend on i: a token early in an otherwise matching run has a large weight, a token after a certain
rejection has none. Greedy verification accepts the arg-max only, so `a_i` is the draft's
probability of the target's arg-max.

With these weights alone, difficult tokens would not be learned. The Kullback-Leibler divergence
from the target's probabilities is therefore added (Hinton et al., arXiv 1503.02531; on the target's
text, as in DistillSpec, arXiv 2310.08461).

Sampled text is the arg-max of log-probabilities plus Gumbel noise, and target and draft add the
same noise. Their tokens are equal with probability

    J(p, q) = Σ_v 1 / Σ_u max(p_u / p_v, q_u / q_v),

so the exact objective for sampled text is -log J. In each inner sum, p decides where u's ratio p/q
is at least v's, and q where it is less. Sorted by this ratio, the inner sums are cumulative sums.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

from calibration.distillation.batches import TrainingBatch

Objective = Literal["divergence", "argmax", "accepted", "sampled", "mixed"]
"""`mixed` is for one draft that serves greedy and sampled text: `accepted` plus `sampled`."""
ROUND_TOKENS = 6
"""Draft tokens per round in the objective `accepted`."""
TEMPERATURES = (0.7, 1.0)
"""Temperatures of the text in the objective `sampled`."""
_LEAST_LOGPROB = -60.0
_LEAST_REMAINDER = 1e-6
"""Least probability of all tokens outside the target's likeliest, for float32 sums."""


def divergence(logits: Tensor, batch: TrainingBatch) -> Tensor:
    """Return KL(target ‖ draft) at each position, up to a constant: [n] from [n, candidates]."""
    logprobs = functional.log_softmax(logits.float(), dim=-1).gather(1, batch.targets)
    return -(batch.probabilities * logprobs).sum(-1)


def loss(logits: Tensor, batch: TrainingBatch, objective: Objective) -> Tensor:
    """Return the mean over positions, a scalar, from logits [n, candidates]."""
    if objective == "sampled":
        return torch.stack([_rejection(logits, batch, t) for t in TEMPERATURES]).mean()
    if objective == "mixed":
        parts = [_rejection(logits, batch, t) for t in TEMPERATURES]
        return torch.stack([loss(logits, batch, "accepted"), *parts]).mean()
    logprobs = functional.log_softmax(logits.float(), dim=-1)
    soft = -(batch.probabilities * logprobs.gather(1, batch.targets)).sum(-1)
    if objective == "divergence":
        return soft.mean()
    right = logprobs.gather(1, batch.targets[:, :1])[:, 0]
    if objective == "argmax":
        return (soft - right).mean() / 2
    weights = accepted_weights(right.detach().exp(), batch.steps)
    return (soft - weights * right).mean() / 2


def accepted_weights(chances: Tensor, steps: Tensor) -> Tensor:
    """Return `w_i` of the module's formula, scaled to a mean of 1: [n] from `a` [n].

    The weight of a position is a sum over the rounds that contain it, `Σ_s Σ_k Π_{j ≤ k} a_{s+j}`
    with s < i ≤ s + k, over the starts s in its row.
    """
    n = len(chances)
    weights = torch.zeros_like(chances)
    for back in range(ROUND_TOKENS):  # the round started `back` positions before i
        inside = torch.ones_like(chances)
        for j in range(back + 1):
            inside = inside * functional.pad(chances, (back - j, 0))[:n]
        inside = inside * (steps >= back)
        reached = inside
        for ahead in range(ROUND_TOKENS - back):
            if ahead:
                following = functional.pad(chances, (0, ahead))[ahead:]
                same = functional.pad(steps, (0, ahead), value=0)[ahead:] == steps + ahead
                reached = reached * following * same
            weights = weights + reached
    return weights / weights.mean().clamp(min=1e-6)


def log_acceptance(target: Tensor, draft: Tensor) -> Tensor:
    """Return log J for each row of log-probabilities: [n] from two tensors [n, tokens]."""
    target, draft = (x.clamp_min(_LEAST_LOGPROB) for x in (target, draft))
    order = (target - draft).argsort(-1, descending=True)
    p, q = target.gather(-1, order), draft.gather(-1, order)
    at_least = p.exp().cumsum(-1)
    less = functional.pad(q.exp().flip(-1).cumsum(-1).flip(-1)[:, 1:], (0, 1))
    at_least, less = (x.clamp_min(math.exp(_LEAST_LOGPROB)).log() for x in (at_least, less))
    return (-torch.logaddexp(at_least - p, less - q)).logsumexp(-1)


def _rejection(logits: Tensor, batch: TrainingBatch, temperature: float) -> Tensor:
    """Return the mean of -log J at a temperature, over the target's likeliest tokens and the rest.

    The tokens outside the target's likeliest count as one token. At a temperature below 1, each of
    them is taken to be as likely as the least likely stored one, which bounds their probability.
    """
    listed = batch.probabilities.clamp_min(1e-30)
    rest = (1 - listed.sum(-1, keepdim=True)).clamp_min(_LEAST_REMAINDER).log()
    listed = listed.log()
    rest = rest + (1 / temperature - 1) * listed[:, -1:]
    target = torch.cat((listed / temperature, rest), -1).log_softmax(-1)
    own = functional.log_softmax(logits.float() / temperature, dim=-1).gather(1, batch.targets)
    remainder = (1 - own.exp().sum(-1, keepdim=True)).clamp_min(_LEAST_REMAINDER).log()
    return -log_acceptance(target, torch.cat((own, remainder), -1)).mean()
