"""The cost model of steps, on machines that follow such a model exactly."""

import random

import pytest

from cloud_runtime.costs import Speeds, StepCosts
from edgespec.policies import SchedulerPolicy


def machine(rows, width, cached=0, *, least=1):
    """15 ms, 3 for each row, half for each token, and 2 µs for each cached position."""
    return 0.015 + 0.003 * rows + 0.0005 * rows * max(width, least) + 2e-6 * cached


def steps(chance, count):
    """Rows, width, cached positions."""
    for _ in range(count):
        rows = chance.randint(1, 16)
        yield rows, chance.randint(1, 8), sum(chance.randint(10, 1000) for _ in range(rows))


def taught(costs, chance, count, *, factor=1.0, noise=0.0, least=1):
    for rows, width, cached in steps(chance, count):
        seconds = factor * machine(rows, width, cached, least=least)
        costs.learn(rows, width, seconds * chance.uniform(1 - noise, 1 + noise), cached)
    return costs


@pytest.mark.parametrize(
    ("rows", "width", "cached", "milliseconds"),
    [(1, 1, 0, 22), (1, 5, 0, 26), (2, 5, 0, 32), (1, 1, 1000, 23), (0, 1, 0, 20)],
)
def test_the_first_guess(rows, width, cached, milliseconds):
    assert StepCosts().step(width, rows, cached) == pytest.approx(milliseconds / 1e3)


SHAPES = [(1, 1, 300), (1, 8, 300), (4, 5, 3000), (16, 1, 9000), (16, 8, 9000), (32, 4, 20_000)]


@pytest.mark.parametrize(("rows", "width", "cached"), SHAPES)
def test_a_machine_that_keeps_to_the_model_is_recovered(rows, width, cached):
    costs = taught(StepCosts(), random.Random(1), 200, noise=0.05)
    expected = machine(rows, width, cached)
    assert costs.step(width, rows, cached) == pytest.approx(expected, rel=0.05)


def test_the_median_error_of_predictions_is_told():
    """Each prediction is made before its step is measured; the first ones are guesses."""
    costs = StepCosts()
    assert costs.error == 0.0
    taught(costs, random.Random(3), 200, noise=0.03)
    assert 0.005 < costs.error < 0.1
    taught(costs, random.Random(4), 200)
    assert costs.error < 0.005
    # A machine that is not linear in its rows: whole groups of eight cost as much as each other.
    chance = random.Random(5)
    for rows, width, cached in steps(chance, 400):
        groups = -(-rows // 8)
        costs.learn(rows, width, machine(8 * groups, width, cached) * chance.uniform(0.97, 1.03))
    assert 0.03 < costs.error < 0.25


def test_rows_are_padded_to_what_the_engine_runs_at_least():
    costs = taught(StepCosts(min_tokens=4), random.Random(1), 200, least=4)
    assert costs.step(1, 3) == costs.step(4, 3) < costs.step(5, 3)
    assert costs.step(1, 3) == pytest.approx(machine(3, 4), rel=0.01)


def test_one_row_alone_tells_what_tokens_cost():
    """The state at the start, when only steps of one session have been measured."""
    costs = StepCosts()
    for _ in range(3):
        for width in (1, 2, 4, 8):
            costs.learn(1, width, 0.100 + 0.010 * width)
    assert costs.step(1) == pytest.approx(0.110, rel=0.03)
    assert costs.step(8) - costs.step(1) == pytest.approx(0.070, rel=0.03)


def test_it_follows_a_machine_that_slows_down_and_recovers():
    costs, chance = StepCosts(), random.Random(2)
    for factor in (1.0, 3.0, 0.5):
        taught(costs, chance, 300, factor=factor)
        expected = factor * machine(4, 5, 2000)
        assert costs.step(5, 4, 2000) == pytest.approx(expected, rel=0.05)


@pytest.mark.parametrize("remembers", [False, True])
def test_what_was_measured_at_the_start_decides_what_later_steps_leave_open(remembers):
    """From then on one to eight sessions only decode."""
    costs, chance = taught(StepCosts(), random.Random(1), 60), random.Random(2)
    if remembers:
        costs.remember()
        assert costs.error == 0.0, "of what comes from now on"
    for _ in range(1000):
        rows = chance.randint(1, 8)
        costs.learn(rows, 1, machine(rows, 1))
    assert costs.step(1, 4) == pytest.approx(machine(4, 1), rel=0.05)
    wider = costs.step(8, 4) - costs.step(1, 4)
    assert (wider == pytest.approx(machine(4, 8) - machine(4, 1), rel=0.1)) == remembers


def test_no_step_is_free_and_more_is_never_cheaper():
    costs = StepCosts()
    for _ in range(50):
        costs.learn(1, 8, 0.001, 900)  # long ones were quick, and short ones slow
        costs.learn(4, 1, 0.050)
        costs.learn(1, 1, 0.050)
    for rows in (1, 4, 9):
        for width in (1, 4, 9):
            here = costs.step(width, rows)
            assert 0 < here <= costs.step(width + 1, rows)
            assert here <= costs.step(width, rows + 1)
            assert here <= costs.step(width, rows, 1000)


@pytest.mark.parametrize("seconds", [0.0, -3600.0])
def test_a_clock_that_stands_or_jumps_is_no_measurement(seconds):
    costs = StepCosts()
    for _ in range(50):
        costs.learn(1, 1, seconds)
    assert costs.step(1) == StepCosts().step(1)
    assert costs.error == 0.0


def test_short_rows_and_prompts_are_learnt_apart():
    speeds, short = Speeds(), SchedulerPolicy().short_row_tokens
    assert speeds.for_width(1) is speeds.for_width(short) is speeds.costs
    assert speeds.for_width(short + 1) is speeds.chunks
    assert speeds.cloud_draft is None
