"""ONNX Runtime with its caches in a device's memory: the same bits, over a device that is the
host's memory; and what it says where CUDA is not as it should be."""

import numpy as np
import onnxruntime
import pytest

from edgespec.errors import EngineError
from engines.base import Row, final_choices
from engines.exactness import WAYS, measure
from engines.onnxruntime_backend import engine as ort
from engines.onnxruntime_backend.engine import (
    OrtSettings,
    load_draft,
    load_target,
    open_device,
    usable_providers,
)
from engines.onnxruntime_backend.graph import Node, check_placement, cuda_options, placement
from tests.engines.host_device import HostDevice

CUDA = ("CUDAExecutionProvider", "CPUExecutionProvider")


@pytest.fixture(scope="module")
def host():
    return HostDevice()


@pytest.fixture(scope="module")
def engine(tiny_bundle, host):
    return load_target(tiny_bundle, OrtSettings(slots=12), host)


def test_every_way_gives_the_bits_of_the_plain_path(tiny_bundle, engine):
    plain = load_target(tiny_bundle, OrtSettings())
    ids = np.random.default_rng(1).integers(0, plain.vocabulary, 300).tolist()
    for name, way in WAYS.items():
        assert np.array_equal(way(engine, ids), way(plain, ids)), name
    cases = measure(lambda threads: engine, threads=(1,))
    assert all(case.identical for case in cases)


def test_hints_come_from_states_on_the_device(tiny_bundle, engine):
    plain = load_target(tiny_bundle, OrtSettings())
    said = []
    for one in (engine, plain):
        slot = one.open()
        rows = [Row(slot, 0, list(range(5, 25)), 3, True)]
        said.append([step.choices[0] for step in one.run(rows)])
        one.close(slot)
    assert len(said[0]) == 3
    for here, there in zip(*said, strict=True):
        assert (here is None) == (there is None)
        assert here is None or np.array_equal(here.logits, there.logits)
    assert sum(choices is not None for choices in said[0]) > 1, "there are exit heads"


def test_slots_that_come_and_grow_move_the_pool_and_nothing_else(engine, host):
    """A frame of the pool as it lay before is never used again: its addresses are nobody's."""
    ids = [(7 * number) % 290 + 5 for number in range(260)]
    slots, said = [], []
    for turn in range(9):
        slots.append(engine.open())
        for slot in slots:
            engine.truncate(slot, 0)
        results = final_choices(engine, [Row(slot, 0, ids[:30], 30) for slot in slots])
        said += [choices.logits for choices in results]
        assert all(np.array_equal(logits, said[0]) for logits in said[-turn - 1 :])
    (long,) = final_choices(engine, [Row(slots[4], 30, ids[30:], 200)])
    for slot in slots[:4]:
        engine.close(slot)
    engine.truncate(slots[4], 100)
    (again,) = final_choices(engine, [Row(slots[4], 100, ids[100:], 160)])
    assert np.array_equal(long.logits[-160:], again.logits)
    for slot in slots[4:]:
        engine.close(slot)


def test_a_slot_in_the_middle_runs_alone(tiny_bundle, engine):
    plain = load_target(tiny_bundle, OrtSettings())
    said = []
    for one in (engine, plain):
        slots = [one.open() for _ in range(3)]
        for number, slot in enumerate(slots):
            final_choices(one, [Row(slot, 0, range(10 + number, 40 + number), 0)])
        said.append(final_choices(one, [Row(slots[1], 30, [7, 8, 9], 3)])[0].logits)
        said.append(final_choices(one, [Row(slots[2], 30, [7, 8, 9], 3)])[0].logits)
        for slot in slots:
            one.close(slot)
    assert np.array_equal(said[0], said[2]) and np.array_equal(said[1], said[3])
    assert not np.array_equal(said[0], said[1])


@pytest.mark.parametrize("profile", ["cpu-fp32", "cpu-int8"])
def test_a_draft_keeps_its_cache_there_too(tiny_bundle, host, profile):
    ids = list(range(10, 60))
    settings = OrtSettings(slots=2, min_tokens=1)
    said = []
    for device in (host, None):
        draft = load_draft(tiny_bundle, profile, settings, device)
        slot = draft.open()
        parts = [final_choices(draft, [Row(slot, n, [token])])[0] for n, token in enumerate(ids)]
        said.append(np.concatenate([choices.logits for choices in parts]))
    assert np.array_equal(*said)


def test_the_gpu_is_asked_for_only_where_this_onnx_runtime_has_it(monkeypatch):
    assert open_device(OrtSettings(providers=CUDA)) is None, "this one is for CPUs"
    assert usable_providers() == ("CPUExecutionProvider",)
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: list(CUDA))
    monkeypatch.setattr("engines.cuda.MODULES", ("no_such_module",))
    assert open_device(OrtSettings()) is None, "nobody asked"
    with pytest.raises(EngineError, match=r"edgespec\[cuda\]"):
        open_device(OrtSettings(providers=CUDA))
    monkeypatch.setattr(ort, "CudaDevice", HostDevice)
    assert isinstance(open_device(OrtSettings(providers=CUDA)), HostDevice)


def test_a_target_without_a_gpu_runs_on_the_cpu_and_says_why(monkeypatch, caplog):
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: list(CUDA))
    monkeypatch.setattr("engines.cuda.MODULES", ("no_such_module",))
    assert usable_providers() == ("CPUExecutionProvider",)
    assert "runs on the CPU: cuda-python is not installed" in caplog.text
    monkeypatch.setattr(ort, "Runtime", lambda: None)
    monkeypatch.setattr(ort, "count", lambda runtime: 1)
    assert usable_providers() == CUDA


def test_copies_and_runs_share_a_stream(host):
    assert cuda_options(host)["user_compute_stream"] == "7"
    assert cuda_options(host)["use_tf32"] == "0"


def test_a_cuda_provider_that_did_not_start_is_refused(tmp_path):
    with pytest.raises(EngineError, match="did not start its CUDA provider"):
        check_placement(tmp_path, ["CPUExecutionProvider"], [])


def nodes(*strays):
    usual = [
        Node("CUDAExecutionProvider", "model.layers.0.self_attn", "Attention"),
        Node("CPUExecutionProvider", "capacity", "Shape"),
        Node("CPUExecutionProvider", "rows.steps", "Reshape"),
        Node("CPUExecutionProvider", "seen", "Tile"),
    ]
    return [*usual, *(Node("CPUExecutionProvider", *stray) for stray in strays)]


def test_the_arithmetic_of_shapes_may_stay_on_the_cpu(tmp_path):
    check_placement(tmp_path, CUDA, nodes())


@pytest.mark.parametrize(
    "stray",
    [
        ("cache_key.0.out", "TensorScatter"),
        ("model.layers.0.self_attn.q_split", "Reshape"),
        ("", "Sigmoid"),
    ],
)
def test_a_layer_that_would_run_on_the_cpu_is_refused(tmp_path, stray):
    with pytest.raises(EngineError, match=rf"1 nodes.*\({stray[1]}.*--opset 21"):
        check_placement(tmp_path / "a.onnx", CUDA, nodes(stray))


def test_a_session_says_where_its_nodes_went(tiny_bundle, tmp_path):
    """All of them to the CPU here, which as a GPU's session would be refused."""
    options = onnxruntime.SessionOptions()
    options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
    path = tiny_bundle.path("target/segment-00.onnx")
    session = onnxruntime.InferenceSession(str(path), options)
    found = placement(session)
    assert Node("CPUExecutionProvider", "cache_key.0.out", "TensorScatter") in found
    with pytest.raises(EngineError, match="Attention"):
        check_placement(path, CUDA, found)


def test_an_older_onnx_runtime_that_cannot_say_is_warned_about(caplog):
    assert placement(object()) == []
    assert "cannot say which nodes run on the GPU" in caplog.text
