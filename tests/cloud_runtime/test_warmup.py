"""Measuring step times, on engines with a clock of their own."""

import pytest

from cloud_runtime.costs import StepCosts
from cloud_runtime.warmup import CLOUD_DRAFT_ROWS, PAST_TOKENS, REPEATS, SHAPES, measure
from engines.drafters.model import ModelDrafter
from engines.toy import ToyEngine


class Clock:
    now = 100.0

    def __call__(self):
        return self.now


class Timed(ToyEngine):
    """An engine whose steps take a known time; the first of each shape takes twice as long."""

    def __init__(self, clock, chunks=0.0002, **options):
        super().__init__(**options)
        self._clock, self._chunks = clock, chunks
        self.shapes = []

    def run(self, rows):
        shape = len(rows), max(len(row.tokens) for row in rows)
        seconds = self.seconds(*shape, sum(row.start for row in rows))
        if any(row.hints for row in rows):
            seconds += 0.002
        self._clock.now += seconds * (1 if shape in self.shapes else 2)
        self.shapes.append(shape)
        return super().run(rows)

    def seconds(self, rows, width, cached):
        if width > 16:
            return 0.005 + self._chunks * rows * width
        return 0.015 + 0.002 * rows + 0.001 * rows * max(width, self.min_tokens) + 1e-6 * cached


def cached(rows):
    return rows * PAST_TOKENS


@pytest.mark.parametrize("least", [1, 2])
def test_what_is_measured_is_what_it_costs(least):
    clock = Clock()
    engine = Timed(clock)
    engine.min_tokens = least
    speeds = measure(engine, None, hints=False, clock=clock)
    for rows, width in [*SHAPES, (3, 3), (8, 8), (16, 4)]:
        expected = engine.seconds(rows, width, cached(rows))
        assert speeds.costs.step(width, rows, cached(rows)) == pytest.approx(expected, rel=0.05)
    for rows, width in ((1, 32), (1, 64), (2, 64), (4, 64)):
        expected = engine.seconds(rows, width, cached(rows))
        assert speeds.chunks.step(width, rows, cached(rows)) == pytest.approx(expected, rel=0.1)
    assert speeds.cloud_draft is None and speeds.hints_s == 0.0
    assert engine.shapes.count((1, 1)) == REPEATS + 1
    assert not engine._cache.length, "no session is left behind"


def test_exit_heads_are_what_they_add():
    clock = Clock()
    speeds = measure(Timed(clock), None, hints=True, clock=clock)
    assert speeds.hints_s == pytest.approx(0.002)


@pytest.mark.parametrize(("slots", "context", "most"), [(1, 512, 1), (3, 512, 2), (9, 40, 8)])
def test_a_small_engine_is_measured_as_far_as_it_goes(slots, context, most):
    clock = Clock()
    engine = Timed(clock, slots=slots, context=context)
    speeds = measure(engine, None, hints=True, clock=clock)
    assert max(rows for rows, width in engine.shapes if width < PAST_TOKENS) == most
    assert speeds.costs.step(2, 1, PAST_TOKENS) == pytest.approx(
        engine.seconds(1, 2, PAST_TOKENS), rel=0.05
    )
    assert not engine._cache.length


class TimedDraft(Timed):
    """A draft without shapes: it is warm after its first step."""

    def __init__(self, clock, **options):
        super().__init__(clock, **options)
        self.shapes = [(rows, width) for rows in range(9) for width in range(PAST_TOKENS)]

    def seconds(self, rows, width, cached):
        del width, cached
        return 0.004 + 0.001 * rows


@pytest.mark.parametrize("slots", [8, 2])
def test_the_cloud_draft_is_measured_by_number_of_sessions(slots):
    clock = Clock()
    draft = TimedDraft(clock, slots=slots)
    speeds = measure(Timed(clock), ModelDrafter(draft, "toy", branches=1), hints=False, clock=clock)
    assert speeds.cloud_draft is not None
    times = [speeds.cloud_draft.step(1, texts) for texts in CLOUD_DRAFT_ROWS]
    if slots == 8:
        assert times == pytest.approx([0.005, 0.006, 0.008], rel=0.05)
    else:  # in two steps: 5, 6 and 12 ms
        assert times[0] < times[1] < times[2] and times[2] > 0.010
    assert not draft._cache.length


def test_what_was_measured_outweighs_what_was_guessed():
    clock = Clock()
    speeds = measure(Timed(clock), None, hints=False, clock=clock)
    for costs in (speeds.costs, speeds.chunks):
        assert costs.step(2) != pytest.approx(StepCosts().step(2), rel=0.02)
        assert costs.error == 0.0, "of what comes from now on"
