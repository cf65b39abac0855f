"""Readings become joules: exact figures on made-up times."""

from __future__ import annotations

import math

import pytest

from engines.machine.energy.sensor import Sensor
from engines.machine.energy.tally import SensorTally


def power(*rails, inside=(), most=100.0):
    return SensorTally(Sensor("S", "all", "power", rails, dict, 0.1, most, inside))


def counter(*rails, most=100.0, **wraps):
    return SensorTally(Sensor("S", "all", "counter", rails, dict, 1.0, most, wrap_joules=wraps))


def joules(tally):
    return {name: rail.joules for name, rail in tally.rails.items()}


def test_power_is_integrated_by_the_trapezoid_over_uneven_times():
    tally = power("a")
    for now, watts in ((10.0, 2.0), (10.5, 4.0), (12.5, 4.0), (12.75, 0.0)):
        tally.add(now, {"a": watts})
    assert joules(tally) == {"a": 0.5 * 3 + 2.0 * 4 + 0.25 * 2}
    assert tally.missing == 0.0 and tally.faults == [] and tally.samples == 4


def test_a_rail_that_disappears_is_not_made_up():
    tally = power("a", "b", inside=("c",))
    tally.add(0.0, {"a": 1.0, "b": 1.0})
    tally.add(1.0, {"a": 1.0, "b": 1.0})
    tally.add(2.0, {"a": 1.0})
    tally.add(3.0, {"a": 1.0, "b": 5.0})
    tally.add(4.0, {"a": 1.0, "b": 5.0})
    assert joules(tally) == {"a": 4.0, "b": 1.0 + 5.0, "c": 0.0}
    assert tally.missing == 2.0
    assert tally.faults == ["b (S) gave no reading for 2.0 s"]


@pytest.mark.parametrize("absurd", [-0.1, 100.1, math.nan, math.inf])
def test_readings_that_cannot_be_true_are_refused(absurd):
    tally = power("a")
    for now, watts in ((0.0, 1.0), (1.0, 1.0), (2.0, absurd), (3.0, 1.0), (4.0, 1.0)):
        tally.add(now, {"a": watts})
    assert joules(tally) == {"a": 2.0}
    assert tally.missing == 2.0
    assert tally.faults[1] == "1 reading of a (S) cannot be true"


def test_a_counter_is_subtracted_and_may_begin_again_at_zero():
    tally = counter("a", "b", a=1000.0, b=1000.0)
    tally.add(0.0, {"a": 990.0, "b": 10.0})
    tally.add(1.0, {"a": 15.0, "b": 35.5})
    tally.add(2.0, {"a": 20.0, "b": 40.0})
    assert joules(tally) == {"a": 10.0 + 15.0 + 5.0, "b": 30.0}
    assert tally.missing == 0.0


def test_a_counter_may_be_unread_for_a_while_without_loss():
    tally = counter("a")
    tally.add(0.0, {"a": 5.0})
    tally.add(1.0, {})
    tally.add(3.0, {"a": 65.0})
    assert joules(tally) == {"a": 60.0} and tally.missing == 0.0


def test_a_counter_that_was_set_back_or_jumps_is_refused():
    tally = counter("a")  # no range is known: it was set back
    tally.add(0.0, {"a": 50.0})
    tally.add(1.0, {"a": 3.0})
    tally.add(2.0, {"a": 8.0})
    tally.add(3.0, {"a": 5000.0})
    tally.add(4.0, {"a": 5001.0})
    assert joules(tally) == {"a": 5.0 + 1.0}
    assert tally.missing == 2.0 and tally.rails["a"].refused == 2


def test_a_counter_that_is_renewed_in_leaps_may_leap_in_a_short_time():
    tally = counter("a", most=500.0)
    tally.add(0.0, {"a": 0.0})
    tally.add(0.001, {"a": 70.0})
    assert joules(tally) == {"a": 70.0}


def test_one_sample_is_no_measurement():
    tally = power("a")
    assert not tally.measured
    tally.add(5.0, {"a": 3.0})
    assert not tally.measured and tally.missing == 0.0
