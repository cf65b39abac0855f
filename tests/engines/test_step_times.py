"""Steps are repeated from one position, in turns, and the first turn is not counted."""

from engines import step_times
from engines.step_times import RepeatedStep, medians_ms, shortest_ms, times_ms
from engines.toy import ToyEngine


class Counting(ToyEngine):
    def __init__(self, **options):
        super().__init__(**options)
        self.batches = []

    def run(self, rows):
        self.batches.append([(row.start, len(row.tokens), row.choice_count) for row in rows])
        return super().run(rows)


def test_a_step_starts_at_the_same_position_and_leaves_no_slot():
    engine = Counting()
    step = RepeatedStep(engine, rows=3, tokens=2, past_tokens=20)
    assert engine.batches == [[(0, 20, 0)]] * 3
    for _ in range(3):
        step()
    assert engine.batches[3:] == [[(20, 2, 2)] * 3] * 3
    step.close()
    assert not engine._cache.length


def test_a_short_context_is_not_exceeded():
    RepeatedStep(ToyEngine(context=16), tokens=4)()


def test_steps_take_turns_and_the_first_one_warms_up(monkeypatch):
    clock, order, turns = [0.0], [], []
    monkeypatch.setattr(step_times.time, "perf_counter", lambda: clock[0])

    def step(name, seconds):
        def run():
            order.append(name)
            clock[0] += seconds[order.count(name) - 1]

        return run

    def steps():
        order.clear()
        return {"a": step("a", (9, 1, 3, 2)), "b": step("b", (9, 5, 5, 5))}

    assert times_ms(steps(), 3, turns.append) == {"a": [1e3, 3e3, 2e3], "b": [5e3] * 3}
    assert order == ["a", "b"] * 4 and turns == [1] * 4
    assert medians_ms(steps(), 3) == {"a": 2e3, "b": 5e3}
    assert shortest_ms(steps()["a"], 3) == 1e3
