"""The loss is the gradient of accepted tokens a round, not something like it."""

import pytest
import torch

from calibration.distillation.batches import TrainingBatch
from calibration.distillation.losses import ROUND_TOKENS, accepted_weights, loss


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


@pytest.mark.parametrize("objective", ["divergence", "argmax", "accepted"])
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
