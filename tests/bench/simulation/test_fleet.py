"""Many simulated devices on one cloud: exact, repeatable, and a single one as `simulate` has it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from bench.lab.methods import METHODS
from bench.lab.percentile import percentile
from bench.lab.profiles import builtin_profiles
from bench.lab.recording import synthetic
from bench.simulation.engine import SimulatedEngine, TargetStep
from bench.simulation.script import Script
from bench.simulation.simulate import SimulatedDevice, simulate, simulate_fleet
from bench.simulation.stats import DeviceStats, FleetStats, SimulatedAnswer
from bench.simulation.times import Times
from bench.simulation.virtual_time import run_alone
from edgespec.config import CloudSettings, EdgeSettings
from edgespec.errors import EdgespecError
from edgespec.telemetry import AnswerStats
from engines.base import Row

TIMES = Times(
    20.0,
    1.0,
    4.0,
    cloud_draft_ms=4.0,
    message_ms=0.05,
    row_ms=1.0,
    padded=2,
    cloud_draft_text_ms=1.0,
)
RECORDING = synthetic(0.6, answers=6, tokens=24)
MEASURED = {
    1: (21.8, 22.8, 22.3, 24.4, 26.4, 33.1),
    2: (25.8, 26.5, 29.1, 33.9, 37.1, 45.0),
    4: (35.2, 37.1, 43.4, 48.0, 53.1, 68.2),
    8: (51.9, 53.8, 69.9, 81.9, 81.1, 111.6),
    12: (66.7, 67.3, 82.0, 95.8, 108.5, 151.2),
    16: (77.9, 82.8, 99.7, 118.5, 137.7, 194.0),
    24: (102.9, 108.2, 135.2, 161.6, 190.0, 283.9),
    32: (135.4, 141.2, 176.5, 217.4, 255.3, 377.9),
    48: (189.1, 201.0, 256.2, 309.2, 372.6, 550.9),
}
"""Milliseconds of a step of the built-in target on one core, by rows, of WIDTHS tokens."""
WIDTHS = (1, 2, 3, 4, 5, 8)


def device(name="edgespec", rtt_ms=30.0, **changes):
    method = METHODS[name]
    settings = EdgeSettings(mode=method.mode, tactics=method.tactics)
    drafts = method.mode in ("auto", "edge")
    return replace(SimulatedDevice(settings, 4.0, rtt_ms, drafts=drafts), **changes)


def fleet(*devices, recording=RECORDING, times=TIMES, seconds=4.0, cloud=None, **options):
    cloud = cloud or CloudSettings()
    return simulate_fleet(recording, times, devices, cloud=cloud, seconds=seconds, **options)


def figures(stats):
    answers = [(a.start, a.times) for d in stats.devices for a in d.answers]
    return answers, stats.steps, stats.drafted


def test_the_model_of_steps_fits_what_was_measured():
    times = builtin_profiles()[0][0].times(0.0)
    errors = [
        1e3 * times.step(width, rows) / measured - 1
        for rows, row in MEASURED.items()
        for width, measured in zip(WIDTHS, row, strict=True)
    ]
    assert max(map(abs, errors)) < 0.16
    assert np.sqrt(np.mean(np.square(errors))) < 0.06


def test_the_draft_beside_fits_what_was_measured():
    times = builtin_profiles()[0][0].times(0.0)
    measured = {1: 4.6, 2: 5.2, 3: 7.1, 4: 9.6, 8: 15.2, 16: 26.3}
    for texts, took in measured.items():
        assert 1e3 * times.cloud_draft(texts) == pytest.approx(took, rel=0.17)


def test_without_a_cost_of_rows_a_step_takes_what_its_tokens_take():
    assert Times(20.0, 1.0, 4.0).step(5) == pytest.approx(0.024)
    assert Times(20.0, 1.0, 4.0).step(2, rows=3) == pytest.approx(0.025)


@pytest.mark.parametrize("name", METHODS)
def test_a_fleet_of_one_is_what_simulate_says(name):
    recording, one = synthetic(0.6, answers=1, tokens=32), device(name)
    times = replace(TIMES, rtt_ms=one.rtt_ms)
    (alone_,) = simulate(recording, times, one.settings, drafts=one.drafts)
    first = fleet(one, recording=recording).devices[0].answers[0]
    figures_alone = (alone_.seconds, alone_.first_token_seconds, alone_.rounds, alone_.drafted)
    stats = first.stats
    assert figures_alone == pytest.approx(
        (stats.seconds, stats.first_token_seconds, stats.rounds, stats.drafted)
    )


def test_a_mixed_fleet_is_exact_and_repeatable():
    devices = [
        device(name, rtt, start=0.1 * number, think_seconds=0.2, tokens=(8, 20))
        for number, name in enumerate(METHODS)
        for rtt in (0.0, 40.0)
    ]
    first, again, other = (fleet(*devices, seed=seed) for seed in (1, 1, 2))
    assert figures(first) == figures(again) != figures(other)
    answers = [a for d in first.devices for a in d.answers]
    done = [a for a in answers if a.done]
    assert len(done) > len(devices)
    assert all(8 <= a.stats.tokens == len(a.times) <= 20 for a in done)
    assert max(len(step.widths) for step in first.steps) > 4


def test_another_answer_than_the_recorded_one_is_an_error(monkeypatch):
    target = Script.target
    monkeypatch.setattr(Script, "target", lambda *a: target(*a) + (a[2] == 5))
    with pytest.raises(EdgespecError, match=r"of synthetic, agreement 0\.6 is not"):
        fleet(device(), device())


def test_alike_rows_share_a_step_and_unlike_ones_do_not():
    engine = SimulatedEngine(Script(RECORDING), TIMES, 8)

    def body(process):
        engine.process = process
        slots = [engine.open() for _ in range(3)]
        took = []
        for rows in (
            [Row(slot, 0, [100, 2], 0) for slot in slots],
            [Row(slot, 2, [2] * width, 0) for slot, width in zip(slots, (1, 1, 4), strict=True)],
            [Row(slot, 3, [2] * width, 0) for slot, width in zip(slots, (1, 1, 64), strict=True)],
        ):
            began = process.world.now
            list(engine.run(rows))
            took.append(process.world.now - began)
        return took

    three, wide, unlike = run_alone(body)
    assert three == pytest.approx(TIMES.step(2, 3))
    assert wide == pytest.approx(TIMES.step(4, 3))
    assert unlike == pytest.approx(TIMES.step(1, 2) + TIMES.step(64))


def test_a_slot_that_holds_too_little_is_noticed():
    engine = SimulatedEngine(Script(RECORDING), TIMES, 2)

    def body(process):
        engine.process = process
        slot = engine.open()
        list(engine.run([Row(slot, 0, [100, 2, 2], 0)]))
        engine.truncate(slot, 1)
        list(engine.run([Row(slot, 3, [2])]))

    with pytest.raises(ValueError, match="cached are 1"):
        run_alone(body)
    assert engine.slot_bytes(300) == 2 * engine.slot_bytes(200)


def test_what_is_said_of_a_run():
    done = SimulatedAnswer(0.0, AnswerStats(), [1.0, 1.5, 2.0, 2.0, 3.0], done=True)
    going = SimulatedAnswer(4.0, AnswerStats(), [5.0, 6.0])
    waiting = SimulatedAnswer(6.0, AnswerStats())
    one, none = DeviceStats([done, going]), DeviceStats([waiting])
    assert one.rate(0.0, 8.0) == pytest.approx(5 / (2 + 3))
    assert one.rate(1.2, 2.5) == pytest.approx(3 / 1.3)
    assert none.rate(0.0, 8.0) == 0.0
    assert one.first_tokens(0.0, 8.0) == [1.0, 1.0] and none.first_tokens(0.0, 8.0) == [2.0]
    steps = [TargetStep(0.0, 2.0, (1, 1)), TargetStep(7.0, 2.0, (1, 1, 1, 1))]
    stats = FleetStats([one, none], steps, [(3.0, 1.0)], [(5.0, 0.4)], 0.0, 8.0)
    assert stats.busy == pytest.approx(3 / 8) and stats.drafting == pytest.approx(1 / 8)
    assert stats.handling == pytest.approx(0.05)
    assert stats.mean_batch_rows == 3.0 and stats.rates == [1.0, 0.0]
    assert stats.served(1.0, 5.0) == 0.5 and stats.served(1.0, 0.5) == 0.0


def test_percentiles_are_values():
    assert percentile([3.0, 1.0, 2.0, 4.0], 0.5) == 2.0
    assert percentile([3.0, 1.0], 0.05) == 1.0 and percentile([], 0.5) == 0.0
