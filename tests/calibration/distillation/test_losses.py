"""The loss is the gradient of accepted tokens a round, not something like it."""

from typing import get_args

import pytest
import torch

from calibration.distillation.batches import TrainingBatch
from calibration.distillation.losses import (
    ROUND_TOKENS,
    Objective,
    accepted_weights,
    log_acceptance,
    loss,
)


def accepted(chances, rows):
    """Expected accepted tokens, summed over rounds that start anywhere, written out."""
    total = torch.zeros((), dtype=torch.double)
    for start, stop in rows:
        for first in range(start, stop):
            reached = torch.ones((), dtype=torch.double)
            for i in range(first, min(first + ROUND_TOKENS, stop)):
                reached = reached * chances[i]
                total = total + reached
    return total


@pytest.mark.parametrize("rows", [[(0, 1)], [(0, 9)], [(0, 7), (7, 12)], [(0, 2), (2, 3), (3, 20)]])
def test_the_weights_are_the_gradient_of_accepted_tokens(rows):
    torch.manual_seed(0)
    chances = torch.rand(rows[-1][1], dtype=torch.double, requires_grad=True)
    (gradient,) = torch.autograd.grad(accepted(chances, rows), chances)
    expected = gradient * chances  # by log a
    steps = torch.cat([torch.arange(stop - start) for start, stop in rows])
    weights = accepted_weights(chances.detach(), steps)
    torch.testing.assert_close(weights, (expected / expected.mean()).detach())


def test_a_token_behind_a_certain_rejection_weighs_least():
    weights = accepted_weights(torch.tensor([0.9, 0.9, 0.001, 0.9]), torch.arange(4))
    assert weights[2] < weights[1] < weights[0] or weights[3] < weights[0]
    assert weights[0] > 10 * weights[2]


@pytest.mark.parametrize("objective", get_args(Objective))
def test_the_loss_falls_as_the_draft_comes_near_the_target(objective):
    probabilities = torch.tensor([[0.7, 0.2], [0.6, 0.3]])
    part = TrainingBatch(
        ids=torch.zeros(1, 3, dtype=torch.long),
        learn=torch.ones(1, 3, dtype=torch.bool),
        candidates=torch.arange(4),
        targets=torch.tensor([[1, 2], [3, 0]]),
        probabilities=probabilities,
        steps=torch.arange(2),
    )
    near = torch.full((2, 4), -3.0).scatter(1, part.targets, probabilities.log())
    far = torch.zeros(2, 4)
    wrong = -near
    assert loss(near, part, objective) < loss(far, part, objective) < loss(wrong, part, objective)


def pair(rows, tokens, seed, sharpness=2.0):
    random = torch.Generator().manual_seed(seed)
    p = sharpness * torch.randn(rows, tokens, dtype=torch.double, generator=random)
    q = p + torch.randn(rows, tokens, dtype=torch.double, generator=random)
    return p.log_softmax(-1), q.log_softmax(-1)


def written_out(p, q):
    """J as its formula says, [n] from probabilities [n, tokens]."""
    ratios = torch.maximum(p[:, :, None] / p[:, None], q[:, :, None] / q[:, None])
    return (1 / ratios.sum(1)).sum(1)


def test_acceptance_is_the_formula():
    p, q = pair(50, 25, 1)
    torch.testing.assert_close(log_acceptance(p, q).exp(), written_out(p.exp(), q.exp()))


def test_acceptance_is_how_often_shared_noise_draws_the_same_token():
    p, q = pair(3, 12, 2)
    random = torch.Generator().manual_seed(3)
    noise = -torch.empty(100_000, 1, 12, dtype=torch.double).exponential_(generator=random).log()
    same = ((p + noise).argmax(-1) == (q + noise).argmax(-1)).double().mean(0)
    torch.testing.assert_close(log_acceptance(p, q).exp(), same, atol=0.006, rtol=0)


def test_acceptance_is_between_its_bounds_and_one_for_equals():
    p, q = pair(200, 25, 4)
    distance = (p.exp() - q.exp()).abs().sum(-1) / 2
    accepted = log_acceptance(p, q).exp()
    assert (accepted <= 1 - distance + 1e-9).all()
    assert (accepted >= (1 - distance) / (1 + distance) - 1e-9).all()
    torch.testing.assert_close(log_acceptance(p, p), torch.zeros(200, dtype=torch.double))


def test_the_gradient_of_acceptance_is_that_of_finite_differences():
    p, q = pair(4, 9, 5)
    logits = q.clone().requires_grad_()
    torch.autograd.gradcheck(lambda x: log_acceptance(p, x.log_softmax(-1)), logits)


def test_acceptance_of_certain_and_impossible_tokens_is_finite():
    p = torch.tensor([[0.0, -torch.inf, -torch.inf], [-90.0, -200.0, 0.0]])
    q = torch.tensor([[-100.0, 0.0, -torch.inf], [0.0, 0.0, 0.0]]).requires_grad_()
    found = log_acceptance(p, q.log_softmax(-1))
    assert found.isfinite().all() and found[0] < -30
    assert torch.autograd.grad(found.sum(), q)[0].isfinite().all()


def test_sampled_is_acceptance_where_the_likeliest_tokens_are_all():
    """Four candidates, three of them listed: the fourth is the remainder, exactly."""
    p, q = (x.float() for x in pair(6, 4, 6))
    part = TrainingBatch(
        ids=torch.zeros(6, 2, dtype=torch.long),
        learn=torch.ones(6, 2, dtype=torch.bool),
        candidates=torch.arange(4),
        targets=p.topk(3).indices,
        probabilities=p.topk(3).values.exp(),
        steps=torch.zeros(6, dtype=torch.long),
    )
    exact = -log_acceptance(p, q).mean()
    warmer = -log_acceptance((p / 0.7).log_softmax(-1), (q / 0.7).log_softmax(-1)).mean()
    between = float(loss(q, part, "sampled"))
    assert between == pytest.approx(float(exact + warmer) / 2, rel=0.15)
