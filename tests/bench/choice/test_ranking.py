"""Ranking by hand-written numbers, the written estimates, bounds, and the three lines."""

import json
from dataclasses import replace

import pytest

from bench.choice.candidates import Bounds
from bench.choice.estimates import builtin_curve, read_curve, trained_copy
from bench.choice.ranking import Draft, TargetTimes, break_even, cloud_ms, expected, ranked
from bench.choice.reasons import reasons
from bench.choice.run import ChoiceSettings, conclude
from bench.choice.steps import described
from edgespec.errors import UsageError

TIMES = TargetTimes(30.0, 2.4, {1: 80.0, 3: 120.0})
MB = 1_000_000
RTTS = (0.0, 10.0, 50.0, 200.0)
INT8 = Draft("int8 copy", "cpu-int8", 30, 113 * MB, 140 * MB, 0.968, "", 10.8, ("int8",))
SHALLOW = Draft("18 layers", "cpu-int4", 18, 77 * MB, 90 * MB, 0.61, "a curve", 7.2, ("18",))
SETTINGS = ChoiceSettings("target", "cpu-int4", RTTS)


def test_a_busy_clouds_time_for_a_token_by_hand():
    assert cloud_ms(0.0, TIMES) == pytest.approx(80 / 8)
    assert cloud_ms(0.5, TIMES) == pytest.approx(120 / (8 * 1.75))
    assert cloud_ms(0.1, TIMES) == pytest.approx(
        80 / 8
    )  # drafts that would cost more than they give
    assert expected(replace(INT8, agreement=0.5), TIMES, [0.0]).devices == pytest.approx(7 / 6)


def test_a_described_target_has_batches_that_cost_their_tokens():
    times = described(20.0, 1.5)
    assert times.batch_ms[1] == pytest.approx(20 + 7 * 1.5)
    assert times.batch_ms[9] == pytest.approx(20 + 71 * 1.5)


def test_a_draft_that_is_never_right_gains_nothing():
    never = expected(replace(INT8, agreement=0.0), TIMES, RTTS)
    assert never.gain == pytest.approx(1.0) and never.devices == pytest.approx(1.0)
    assert never.tokens_per_s == pytest.approx([1e3 / 30] * 4)


def test_the_copy_comes_before_the_shallow_draft_at_every_distance():
    best, other = ranked([SHALLOW, INT8], TIMES, RTTS)
    assert (best.draft, other.draft) == (INT8, SHALLOW)
    assert all(a > b for a, b in zip(best.tokens_per_s, other.tokens_per_s, strict=True))
    assert best.devices > other.devices and best.step_ratio == pytest.approx(0.36)


def test_a_cheap_draft_comes_first_where_the_dear_one_is_as_slow_as_the_target():
    dear = replace(INT8, step_ms=30.0)
    assert ranked([dear, SHALLOW], TIMES, [0.0])[0].draft == SHALLOW


def test_of_drafts_about_as_fast_training_the_cloud_and_the_size_decide_in_this_order():
    faster = expected(INT8, TIMES, [0.0])
    right = replace(INT8, name="right", agreement=0.975, step_ms=11.4)
    near = expected(right, TIMES, [0.0])
    assert 0.95 * faster.gain < near.gain < faster.gain and near.devices > faster.devices
    assert ranked([INT8, right], TIMES, [0.0])[0].draft == right
    small = replace(INT8, name="small", disk_bytes=1)
    assert ranked([INT8, small], TIMES, [0.0])[0].draft == small
    trained = replace(small, name="trained", agreement=0.97, estimate="a curve")
    order = ranked([trained, INT8, right], TIMES, [0.0])
    assert [each.draft.name for each in order] == ["right", "int8 copy", "trained"]
    assert order[2].gain > order[0].gain
    third = reasons(order, TIMES, [0.0])[2]
    assert third.startswith("trained (cpu-int8) is expected to be 1.0")
    assert "so small a gain on an estimate does not decide" in third
    much = replace(trained, step_ms=7.0)
    assert ranked([much, INT8, right], TIMES, [0.0])[0].draft == much


def test_break_even_is_the_agreement_that_gives_the_gain():
    gain = expected(INT8, TIMES, [10.0]).gain
    needed = break_even(SHALLOW, gain, TIMES, [10.0])
    assert 0.8 < needed < 0.968
    assert expected(replace(SHALLOW, agreement=needed), TIMES, [10.0]).gain == pytest.approx(
        gain, rel=2e-3
    )
    assert break_even(SHALLOW, 1e6, TIMES, [10.0]) is None


def test_three_lines_name_the_reason_the_next_and_what_it_depends_on():
    lines = reasons(ranked([SHALLOW, INT8], TIMES, [10.0]), TIMES, [10.0])
    assert len(lines) == 3
    assert lines[0].startswith("int8 copy (cpu-int8) agrees at 0.968 of the tokens for 0.36")
    assert (
        "next: 18 layers (cpu-int4) agrees at 0.610 of the tokens (estimated from a curve)"
        in (lines[1])
    )
    assert "would have to agree at 0." in lines[2] and "instead of 0.610" in lines[2]
    unsure = replace(SHALLOW, agreement=0.99, step_ms=5.0)
    assert (
        "its agreement is an estimate: below 0."
        in (reasons(ranked([unsure, INT8], TIMES, [10.0]), TIMES, [10.0])[2])
    )
    alone = reasons(ranked([INT8], TIMES, [10.0]), TIMES, [10.0])
    assert alone[1:] == ["no other draft fits into the bounds", "all agreements are measured"]


def test_no_draft_is_chosen_if_none_gains():
    useless = replace(SHALLOW, agreement=0.01)
    choice = conclude(SETTINGS, TIMES, [(useless, "")], 0.0)
    assert choice.chosen == "" and choice.commands == ()
    assert choice.reasons[0].startswith("no draft is worth making here")


def test_bounds_are_named_and_leave_out():
    assert Bounds().excess(INT8) == ""
    assert Bounds(disk=100 * MB).excess(INT8) == "113 MB of disk, more than 100 MB"
    assert Bounds(memory=100 * MB).excess(INT8) == "140 MB of memory, more than 100 MB"
    assert Bounds(140 * MB, 113 * MB).excess(INT8) == ""
    choice = conclude(SETTINGS, TIMES, [(INT8, "113 MB of disk"), (SHALLOW, "")], 0.0)
    assert choice.chosen == "18 layers" and choice.commands == ("18",)
    assert [(each.draft, each.reason) for each in choice.left_out] == [
        ("int8 copy", "113 MB of disk")
    ]
    with pytest.raises(UsageError, match=r"18 layers at cpu-int4, takes 77 MB of disk and 90 MB"):
        conclude(SETTINGS, TIMES, [(INT8, "large"), (SHALLOW, "large")], 0.0)


def test_the_builtin_estimates_reproduce_their_sources():
    curve = builtin_curve()
    assert curve.agreement(18 / 30) == pytest.approx(0.741, abs=0.01)
    assert curve.agreement(0) == 0 and curve.agreement(1) == 1
    rising = [curve.agreement(share / 20) for share in range(21)]
    assert rising == sorted(rising)
    assert trained_copy(0.774) == pytest.approx(0.909, abs=0.002)


SHAPES = [
    {"layers": "6 of 30", "profile": "cpu-int8", "agreement": 0.2},
    {"layers": "18 of 30", "profile": "cpu-int8", "agreement": 0.5},
    {"layers": "18 of 30", "profile": "cpu-int8", "agreement": 0.6},
    {"layers": "18 of 30", "profile": "cpu-int4", "agreement": 0.55},
    {"layers": "30 of 30", "profile": "cpu-int8", "agreement": 0.97},
]


def test_a_curve_of_bench_shapes_takes_the_best_of_each_depth(tmp_path):
    file = tmp_path / "shapes.json"
    file.write_text("a table\n" + json.dumps({"shapes": SHAPES, "steps": 20}) + "\n")
    curve = read_curve(file, "cpu-int8")
    assert curve.points == [(0.2, 0.2), (0.6, 0.6)] and curve.source == "shapes.json"
    assert curve.agreement(0.4) == pytest.approx(0.4)
    assert read_curve(file, "cpu-int4").points == [(0.6, 0.55)]
    assert read_curve(file, "rpi5").points == [(0.2, 0.2), (0.6, 0.6)]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{}",
        '{"shapes": 3}',
        '{"shapes": []}',
        '{"shapes": [{"layers": "all", "profile": "x", "agreement": 1}]}',
        '{"shapes": [{"layers": "1 of 0", "profile": "x", "agreement": 1}]}',
        '{"shapes": [{"layers": "1 of 2", "profile": "x", "agreement": 7}]}',
        '{"shapes": [{"layers": "1 of 2", "profile": "x", "agreement": null}]}',
        "[[[",
    ],
)
def test_other_json_is_refused(tmp_path, text):
    file = tmp_path / "other.json"
    file.write_text(text)
    with pytest.raises(UsageError, match="pass what 'edgespec bench shapes --json' printed"):
        read_curve(file, "cpu-int8")
