"""What could go wrong around a batch in flight, on a small real graph."""

import numpy as np
import pytest

from edgespec.errors import EngineError
from engines.base import Row, final_choices
from engines.ort import OrtSettings, load_target


@pytest.fixture
def engine(tiny_bundle):
    return load_target(tiny_bundle, OrtSettings(slots=3))


def logits(engine, *rows):
    return [choices.logits for choices in final_choices(engine, rows)]


def test_a_session_that_leaves_during_a_batch_takes_nothing_with_it(engine):
    ids = list(range(10, 60))
    alone = engine.open()
    (expected,) = logits(engine, Row(alone, 0, ids, 50))
    engine.close(alone)
    leaving, staying = engine.open(), engine.open()
    final_choices(engine, [Row(leaving, 0, ids[::-1], 0), Row(staying, 0, ids[:20], 0)])
    steps = []
    for step in engine.run([Row(staying, 20, ids[20:30], 10)]):
        steps.append(step)
        if len(steps) == 1:
            engine.close(leaving)
            engine.open()
    assert np.array_equal(steps[-1].choices[0].logits, expected[20:30])
    (rest,) = logits(engine, Row(staying, 30, ids[30:], 20))
    assert np.array_equal(rest, expected[30:])


def test_slots_that_come_and_grow_leave_each_other_alone(engine):
    ids = list(range(10, 60))
    slots = []
    for _ in range(3):
        slots.append(engine.open())
        for slot in slots:
            engine.truncate(slot, 0)
        results = logits(engine, *(Row(slot, 0, ids, 50) for slot in slots))
        assert all(np.array_equal(result, results[0]) for result in results)
    for slot in slots:
        (again,) = logits(engine, Row(slot, 25, ids[25:], 25))
        assert np.array_equal(again, results[0][25:])


def test_the_context_can_be_filled_to_its_last_position(engine):
    ids = (list(range(10, 60)) * 11)[: engine.context]
    slot = engine.open()
    (whole,) = logits(engine, Row(slot, 0, ids, 8))
    engine.truncate(slot, engine.context - 1)
    (last,) = logits(engine, Row(slot, engine.context - 1, ids[-1:]))
    assert np.array_equal(last, whole[-1:])


@pytest.mark.parametrize(
    ("row", "words"),
    [
        (Row(0, 1, [1]), "row starts at 1"),
        (Row(0, 0, []), "0 tokens"),
        (Row(0, 0, [1], 2), "2 choices"),
        (Row(0, 0, [300]), "outside the vocabulary"),
        (Row(0, 0, [1] * 513), "ends at 513 of 512"),
    ],
)
def test_a_batch_that_breaks_the_contract_never_runs(engine, row, words):
    assert engine.open() == 0
    with pytest.raises(ValueError, match=words):
        final_choices(engine, [row])
    with pytest.raises(ValueError, match="twice"):
        final_choices(engine, [Row(0, 0, [1]), Row(0, 0, [1])])


def test_more_sessions_than_slots(engine):
    for _ in range(3):
        engine.open()
    with pytest.raises(EngineError, match="all 3 slots"):
        engine.open()


def test_a_broken_graph_is_named(tiny_bundle, tmp_path):
    from engines.ort import Graph

    path = tmp_path / "broken.onnx"
    path.write_bytes(b"\x08\x0cnot a graph")
    with pytest.raises(EngineError, match=r"broken\.onnx"):
        Graph(path, OrtSettings())
    with pytest.raises(EngineError, match=r"missing\.onnx"):
        Graph(tmp_path / "missing.onnx", OrtSettings())


@pytest.mark.parametrize("shared", [9, 33, 63, 300])
def test_a_copied_beginning_gives_the_same_bits(engine, shared):
    """Read by another session in other chunks, at rest or not, and gone on from in a batch."""
    ids = [(7 * number) % 290 + 5 for number in range(340)]
    alone = engine.open()
    (expected,) = logits(engine, Row(alone, 0, ids, len(ids)))
    engine.close(alone)
    source = engine.open()
    other = [*ids[:shared], *reversed(ids[shared:])]
    for start in range(0, len(other), 48):
        logits(engine, Row(source, start, other[start : start + 48]))
    for rests in (False, True):
        if rests:
            engine.truncate(source, shared)
            engine.rest(source)
        slot, company = engine.open(), engine.open()
        engine.copy(source, slot, 0, shared)
        (got, _) = logits(engine, Row(slot, shared, ids[shared:], len(ids) - shared),
                          Row(company, 0, ids[:20]))  # fmt: skip
        assert np.array_equal(got, expected[shared:])
        for one in (slot, company):
            engine.close(one)
