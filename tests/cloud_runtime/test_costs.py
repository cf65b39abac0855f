"""The model of what a step costs, held against machines that keep to one."""

import random

import pytest

from cloud_runtime.costs import StepCosts


def steps(chance, count):
    for _ in range(count):
        rows = chance.randint(1, 8)
        yield rows, rows + chance.randint(0, 24)


def test_before_anything_is_measured_a_step_takes_a_moment():
    costs = StepCosts()
    assert costs.step(1) == pytest.approx(0.023)
    assert costs.step(5, rows=2) == pytest.approx(0.029)


def test_a_linear_machine_is_recovered():
    costs, chance = StepCosts(), random.Random(1)
    for rows, tokens in steps(chance, 200):
        seconds = 0.015 + 0.003 * rows + 0.0005 * tokens
        costs.learn(rows, tokens, seconds * chance.uniform(0.95, 1.05))
    assert costs.step(1) == pytest.approx(0.0185, rel=0.05)
    assert costs.step(9) == pytest.approx(0.0225, rel=0.05)
    assert costs.step(20, rows=4) == pytest.approx(0.037, rel=0.05)


def test_one_row_alone_tells_what_tokens_cost():
    """As at the start, when only steps of one session were measured."""
    costs = StepCosts()
    for _ in range(3):
        for tokens in (1, 2, 4, 8):
            costs.learn(1, tokens, 0.100 + 0.010 * tokens)
    assert costs.step(1) == pytest.approx(0.110, rel=0.03)
    assert costs.step(8) - costs.step(1) == pytest.approx(0.070, rel=0.03)


def test_it_follows_a_machine_that_slows_down_and_recovers():
    costs, chance = StepCosts(), random.Random(2)
    for factor in (1.0, 3.0, 0.5):
        for rows, tokens in steps(chance, 250):
            costs.learn(rows, tokens, factor * (0.015 + 0.003 * rows + 0.0005 * tokens))
        assert costs.step(5) == pytest.approx(factor * 0.0205, rel=0.05)


def test_no_step_is_free_and_more_tokens_are_never_cheaper():
    costs = StepCosts()
    for _ in range(50):
        costs.learn(1, 8, 0.001)  # long ones were quick, and short ones slow
        costs.learn(1, 1, 0.050)
    assert 0 < costs.step(1) <= costs.step(8)
    for _ in range(50):
        costs.learn(1, 1, 0.0)
    assert costs.step(1) > 0
