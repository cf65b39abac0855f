"""The expected speed of a draft, by hand, and the default depths of `bench shapes`."""

import pytest

from bench.acceptance.candidate_drafts import ShapesSettings
from bench.acceptance.lockstep_rounds import LENGTHS, accepted, expected_speed

VERIFY = [20.0, 22.0, 24.0, 26.0, 28.0, 30.0, 32.0, 34.0, 36.0]


def rounds(matches):
    return [accepted(matches, length) for length in LENGTHS]


def test_a_draft_that_is_always_right_is_bounded_by_the_slower_side():
    always = rounds([True] * 720)
    speed, length = expected_speed(always, 1.0, VERIFY)  # 8 tokens in 8 ms, verified in 36
    assert length == 8 and speed == pytest.approx(1000 * 9 / 36)
    speed, length = expected_speed(always, 10.0, VERIFY)  # 80 ms of drafting hide 36 of verifying
    assert speed == pytest.approx(max(1000 * (n + 1) / max(10 * n, VERIFY[n]) for n in LENGTHS))


def test_a_draft_that_is_never_right_costs_what_it_costs():
    never = rounds([False] * 100)
    speed, length = expected_speed(never, 5.0, VERIFY)
    assert length == 1 and speed == pytest.approx(1000 / (22 + 5))


def test_a_draft_twice_as_dear_and_right_more_often_can_win():
    cheap, _ = expected_speed(rounds([True, False] * 200), 2.0, VERIFY)
    dear, _ = expected_speed(rounds([True, True, True, False] * 100), 4.0, VERIFY)
    assert dear > 1.2 * cheap


def test_a_round_that_is_half_right_waits_for_the_next_draft():
    half = [[1, 0]] + [[] for _ in LENGTHS[1:]]
    speed, length = expected_speed(half, 3.0, VERIFY)
    assert length == 1 and speed == pytest.approx(1000 * 1.5 / (22 + 0.5 * 3))


def test_the_default_shapes_are_five_between_4_and_20(tmp_path):
    depths = ShapesSettings(tmp_path).depths
    assert len(depths) >= 5 and min(depths) == 4 and max(depths) == 20
