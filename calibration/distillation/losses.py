"""The training objective of a draft: accepted tokens per round.

Let `a_i` be the probability that the draft's token at position i is the target's. A round of γ
tokens that starts after position s accepts `Σ_k Π_{j ≤ k} a_{s+j}` tokens on average. The gradient
of this sum is that of `Σ_i w_i log a_i`, where `w_i` is the expected number of accepted tokens that
depend on i: a token early in an otherwise matching run has a large weight, a token after a certain
rejection has none. Greedy verification accepts the arg-max only, so `a_i` is the draft's
probability of the target's arg-max.

With these weights alone, difficult tokens would not be learned. The Kullback-Leibler divergence
from the target's probabilities is therefore added (Hinton et al., arXiv 1503.02531; on the target's
text, as in DistillSpec, arXiv 2310.08461).
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

from calibration.distillation.batches import TrainingBatch

Objective = Literal["divergence", "argmax", "accepted"]
ROUND_TOKENS = 6
"""Draft tokens per round in the objective `accepted`."""


def divergence(logits: Tensor, batch: TrainingBatch) -> Tensor:
    """Return KL(target ‖ draft) at each position, up to a constant: [n] from [n, candidates]."""
    logprobs = functional.log_softmax(logits.float(), dim=-1).gather(1, batch.targets)
    return -(batch.probabilities * logprobs).sum(-1)


def loss(logits: Tensor, batch: TrainingBatch, objective: Objective) -> Tensor:
    """Return the mean over positions, a scalar, from logits [n, candidates]."""
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
