"""Simulated rounds compared with their times by arithmetic."""

from __future__ import annotations

from functools import cache

import pytest

from bench.lab.methods import METHODS, USELESS
from bench.lab.profiles import builtin_profiles
from bench.lab.recording import RecordedToken, builtin_recording, excerpt, synthetic
from bench.plan.run import answers, speed
from bench.simulation.script import Script
from bench.simulation.simulate import simulate
from bench.simulation.times import Times
from edgespec.config import EdgeSettings
from edgespec.errors import EdgespecError

TIMES = Times(20.0, 1.0, 4.0, rtt_ms=30.0, message_ms=0.0, cloud_message_ms=0.0)
RTTS_MS = (0.0, 10.0, 25.0, 50.0, 100.0, 200.0)


def rate(recording, times, name, draft_length=4):
    return speed(answers(recording, times, (METHODS | USELESS)[name], draft_length))


@cache
def builtin(rtt, name):
    profile = builtin_profiles()[0][0]
    recording = excerpt(builtin_recording("small"), 8)
    return rate(recording, profile.times(rtt), name)


def test_a_run_is_repeated_exactly():
    recording = synthetic(0.6, answers=3)
    runs = [answers(recording, TIMES, METHODS["edgespec"], 4) for _ in range(2)]
    first, second = ([(s.seconds, s.rounds, s.drafted, s.hits) for s in run] for run in runs)
    assert first == second


@pytest.mark.parametrize("rtt", [0.0, 30.0, 300.0])
def test_the_cloud_alone_takes_a_step_a_token_wherever_it_is(rtt):
    times = Times(20.0, 1.0, 4.0, rtt_ms=rtt, message_ms=0.0, cloud_message_ms=0.0)
    assert rate(synthetic(0.6, answers=2), times, "cloud") == pytest.approx(50.0)


def marginal(agreement, times, length, more, *, useless=False):
    """Milliseconds that an answer takes longer with so many more tokens: how an answer begins and
    ends, with shorter rounds, is left out."""
    settings = EdgeSettings(mode="edge", tactics=METHODS["lockstep"].tactics, draft_length=length)
    short, long = (
        simulate(synthetic(agreement, 1, 40 + extra), times, settings, useless=useless)[0]
        for extra in (0, more)
    )
    return 1e3 * (long.seconds - short.seconds)


@pytest.mark.parametrize("length", [1, 4, 7])
@pytest.mark.parametrize("rtt", [0.0, 30.0])
def test_lockstep_with_a_draft_that_is_always_right(length, rtt):
    times = Times(20.0, 1.0, 4.0, rtt_ms=rtt, message_ms=0.0, cloud_message_ms=0.0)
    a_round = length * 4.0 + rtt + 20.0 + length * 1.0
    spent = marginal(1.0, times, length, 10 * (length + 1))
    assert spent == pytest.approx(10 * a_round, rel=1e-6)


@pytest.mark.parametrize(("agreement", "useless"), [(0.0, False), (0.9, True)])
def test_lockstep_with_a_draft_that_is_never_right(agreement, useless):
    a_round = 4 * 4.0 + 30.0 + 24.0
    spent = marginal(agreement, TIMES, 4, 10, useless=useless)
    assert spent == pytest.approx(10 * a_round, rel=1e-6)


def test_exit_heads_are_asked_cost_their_time_and_are_right_as_often_as_said():
    recording = synthetic(0.0, answers=6)
    heads = Times(20.0, 1.0, 4.0, hint_ms=10.0, rtt_ms=0.0, exits=(0.0, 1.0))
    told = answers(recording, heads, METHODS["exits"], 4)
    first, second = (
        [s.hints[layer].accuracy for s in told if layer in s.hints] for layer in (1, 2)
    )
    assert set(first) == {0.0} and set(second) == {1.0}
    assert sum(s.hits.get("hint", 0) for s in told) > 0
    none = Times(20.0, 1.0, 4.0, hint_ms=10.0, rtt_ms=0.0)
    assert not any(s.hints for s in answers(recording, none, METHODS["exits"], 4))


def test_what_an_exit_head_says_does_not_change():
    recording = synthetic(0.5, answers=2)
    script = Script(recording)
    text = script.prompt(1)
    hints = [[script.hint(text, place, 1, 0.4) for place in range(64)] for _ in range(2)]
    right = [script.target(text, place) == hint for place, hint in enumerate(hints[0])]
    assert hints[0] == hints[1] and 0.2 < sum(right) / 64 < 0.6


@pytest.mark.parametrize("rtt", RTTS_MS)
def test_a_useless_draft_costs_next_to_nothing(rtt):
    assert builtin(rtt, "useless draft") >= 0.97 * builtin(rtt, "cloud")


@pytest.mark.parametrize("rtt", RTTS_MS)
def test_ours_is_no_worse_than_the_best_baseline(rtt):
    best = max(builtin(rtt, name) for name in METHODS if name != "edgespec")
    assert builtin(rtt, "edgespec") >= 0.97 * best


def test_another_answer_than_the_recorded_one_is_an_error(monkeypatch):
    recording = synthetic(0.6, answers=1)
    target = Script.target
    monkeypatch.setattr(Script, "target", lambda *a: target(*a) + (a[2] == 5))
    with pytest.raises(EdgespecError, match=r"prompt 1 of synthetic, agreement 0\.6 is not"):
        answers(recording, TIMES, METHODS["cloud"], 4)


def test_an_error_of_the_target_reaches_the_caller(monkeypatch):
    def broken(*_):
        raise ZeroDivisionError("the script")

    monkeypatch.setattr(Script, "target", broken)
    with pytest.raises(ZeroDivisionError, match="the script"):
        answers(synthetic(0.6, answers=1), TIMES, METHODS["edgespec"], 4)


def test_a_synthetic_draft_is_right_and_sure_as_often_as_asked():
    positions = [s for answer in synthetic(0.7, answers=100).answers for s in answer]
    misses = [s for s in positions if s.guess != s.token]
    assert len(misses) / len(positions) == pytest.approx(0.3, abs=0.03)
    assert sum(s.confidence for s in positions) / len(positions) == pytest.approx(0.7, abs=0.03)
    assert sum(s.other == s.token for s in misses) / len(misses) == pytest.approx(0.36, abs=0.05)
    confident = [s for s in positions if s.confidence > 0.9]
    right = sum(s.guess == s.token for s in confident) / len(confident)
    assert right == pytest.approx(sum(s.confidence for s in confident) / len(confident), abs=0.03)
    assert isinstance(positions[0], RecordedToken) and synthetic(0.7) == synthetic(0.7)
