"""What could go wrong around a batch in flight, on a small real graph."""

import msgspec
import numpy as np
import onnxruntime
import pytest

from edgespec.errors import EngineError
from edgespec.manifest import Bundle
from engines.base import Row, final_choices
from engines.onnxruntime_backend.engine import OrtSettings, device_settings, load_draft, load_target
from engines.onnxruntime_backend.graph import Graph
from engines.onnxruntime_backend.session import session_options


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
    path = tmp_path / "broken.onnx"
    path.write_bytes(b"\x08\x0cnot a graph")
    with pytest.raises(EngineError, match=r"broken\.onnx"):
        Graph(path, OrtSettings())
    with pytest.raises(EngineError, match=r"missing\.onnx"):
        Graph(tmp_path / "missing.onnx", OrtSettings())


DRAFT_WAYS = ", take a draft exported with --profile cpu-compat, or --drafter ngram"
TARGET_WAYS = ", or export the target with --opset 21"


@pytest.mark.parametrize(
    ("version", "opset", "role", "sentence"),
    [
        ("1.23.2", 24, "draft", f"1.25 (opset 24); install a newer one (Python 3.11 or newer "
         f"has it){DRAFT_WAYS}"),
        ("1.23.2", 24, "target", f"1.25 (opset 24); install a newer one (Python 3.11 or newer "
         f"has it){TARGET_WAYS}"),
        ("1.18.1", 21, "draft", "1.19 (opset 21); install a newer one"),
        ("1.23.2", 21, "draft", ""),
        ("1.31.1", 24, "target", ""),
    ],
)  # fmt: skip
def test_only_a_runtime_too_old_for_the_graph_is_called_so(
    tmp_path, monkeypatch, version, opset, role, sentence
):
    path = tmp_path / "broken.onnx"
    path.write_bytes(b"\x08\x0cnot a graph")
    monkeypatch.setattr(onnxruntime, "__version__", version)
    with pytest.raises(EngineError) as caught:
        Graph(path, OrtSettings(), opset=opset, role=role)
    if sentence:
        expected = f"ONNX Runtime {version} is too old for {path}, which needs {sentence}"
        assert str(caught.value) == expected
    else:
        assert str(caught.value).startswith(f"ONNX Runtime {version} cannot load {path}: ")


class Unread(Bundle):
    """A bundle whose graphs are elsewhere: nothing to load, and nothing to check."""

    def path(self, name):
        return self.folder / "moved" / name

    def check(self, *folders):
        pass


@pytest.mark.parametrize(
    ("opset", "of_draft", "of_target"),
    [(24, DRAFT_WAYS, TARGET_WAYS), (21, "cannot load", "cannot load")],
)
def test_the_opset_is_the_manifests(tiny_bundle, monkeypatch, opset, of_draft, of_target):
    monkeypatch.setattr(onnxruntime, "__version__", "1.23.2")
    manifest, replace = tiny_bundle.manifest, msgspec.structs.replace
    drafts = {name: replace(draft, opset=opset) for name, draft in manifest.drafts.items()}
    changed = replace(manifest, drafts=drafts, target=replace(manifest.target, opset=opset))
    bundle = Unread(tiny_bundle.folder, changed)
    with pytest.raises(EngineError, match=of_draft):
        load_draft(bundle, "cpu-int8", OrtSettings())
    with pytest.raises(EngineError, match=of_target):
        load_target(bundle, OrtSettings())


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


@pytest.mark.parametrize("alone", [False, True])
def test_threads_wait_awake_only_within_a_step_and_where_no_cloud_computes(alone):
    options = session_options(device_settings("cpu-int4", alone=alone))
    entry = options.get_session_config_entry
    assert entry("session.intra_op.allow_spinning") == str(int(alone))
    if alone:
        assert entry("session.force_spinning_stop") == "1"
        assert 0 < int(entry("session.intra_op.spin_duration_us")) <= 100
