"""The TensorRT back end over a fake of it: the bits of ONNX Runtime through ranges, profiles,
recorded graphs and pools that move; and what it says where something is missing or wrong."""

import gc
import sys
from pathlib import Path

import msgspec
import numpy as np
import pytest

from cloud_runtime.memory.limits import default_limit
from edgespec.config import Request
from edgespec.errors import EngineError, UsageError
from edgespec.manifest import Bundle
from edgespec.sampling import Sampling
from engines import backends
from engines.alone import write_alone
from engines.base import Row, final_choices
from engines.exactness import WAYS
from engines.onnxruntime_backend.engine import OrtRunner, OrtSettings, load_draft, load_target
from engines.tensorrt_backend import target as tensorrt
from engines.tensorrt_backend.api import installation
from engines.tensorrt_backend.buffers import as_numpy
from engines.tensorrt_backend.engine import LoadedEngine, Port
from engines.tensorrt_backend.target import open_draft, open_target
from tests.engines.fake_tensorrt import FakeTensorrt, with_engines
from tests.engines.host_device import HostDevice

DRAFT = "draft/cpu-fp32/model.onnx"
IDS = [(7 * number) % 290 + 5 for number in range(300)]

pytestmark = pytest.mark.skipif(
    f"{sys.platform}-{installation(FakeTensorrt(None)).platform.rpartition('-')[2]}"
    != "linux-x86_64",
    reason="the engines say that they were built on linux-x86_64",
)


def target_graphs(bundle):
    target = bundle.manifest.target
    parts = [name for part in target.segments for name in (part.graph, part.exit) if name]
    return [*parts, target.head]


@pytest.fixture(scope="module")
def built(tiny_bundle, tmp_path_factory):
    """Engines of the target for 256 and 512 positions, of the draft for 512."""
    folder = tmp_path_factory.mktemp("built")
    first = with_engines(tiny_bundle, folder / "target", target_graphs(tiny_bundle), (256, 512))
    second = with_engines(tiny_bundle, folder / "draft", [DRAFT], (128, 512))
    return first, second


class World:
    """A device, a TensorRT on it, and the target of a bundle in that."""

    def __init__(self, bundle, *, lazy=True, **options):
        self.device = HostDevice(lazy=lazy)
        self.trt = FakeTensorrt(self.device, **options)
        self.engine = open_target(bundle, trt=self.trt, device=self.device)


@pytest.fixture(scope="module")
def world(built):
    return World(built[0])


@pytest.fixture(scope="module")
def plain(tiny_bundle):
    return load_target(tiny_bundle, OrtSettings())


@pytest.mark.parametrize("way", WAYS)
def test_every_way_gives_the_bits_of_onnx_runtime(world, plain, way):
    ids = np.random.default_rng(1).integers(0, plain.vocabulary, 300).tolist()
    assert np.array_equal(WAYS[way](world.engine, ids), WAYS[way](plain, ids))


def test_hints_and_choices_of_long_rows_are_put_together(world, plain):
    """More tokens than an engine takes, more answers, and more rows, in one batch."""
    said = []
    for engine in (world.engine, plain):
        slots = [engine.open() for _ in range(5)]
        rows = [
            Row(slot, 0, IDS[: 150 - 30 * n], 100 - 20 * n, True) for n, slot in enumerate(slots)
        ]
        said.append(list(engine.run(rows)))
        for slot in slots:
            engine.close(slot)
    here, there = said
    assert [step.layer for step in here] == [step.layer for step in there]
    for mine, theirs in zip(here, there, strict=True):
        for one, other in zip(mine.choices, theirs.choices, strict=True):
            assert (one is None) == (other is None)
            if one is not None:
                assert np.array_equal(one.logits, other.logits)
                assert np.array_equal(one.argmax, other.argmax)
                assert np.array_equal(one.top_ids, other.top_ids)
    assert [len(choices.argmax) for choices in here[-1].choices] == [100, 80, 60, 40, 20]


def test_more_answers_than_a_head_gives_at_once(world, plain):
    said = []
    for engine in (world.engine, plain):
        slots = [engine.open() for _ in range(2)]
        rows = [Row(slot, 0, IDS[n : n + 64], 64) for n, slot in enumerate(slots)]
        said.append([choices.logits for choices in final_choices(engine, rows)])
        for slot in slots:
            engine.close(slot)
    assert np.array_equal(said[0], said[1])


def test_rows_that_do_not_fit_one_call_run_in_several(world, plain):
    """Of five slots the engine takes three at once; the fourth is idle, where the cut is."""
    said = []
    for engine in (world.engine, plain):
        slots = [engine.open() for _ in range(6)]
        for number, slot in enumerate(slots):
            final_choices(engine, [Row(slot, 0, IDS[number : number + 20], 0)])
        rows = [Row(slots[n], 20, IDS[n : n + 3], 3) for n in (0, 1, 2, 4, 5)]
        said.append([choices.logits for choices in final_choices(engine, rows)])
        after = final_choices(engine, [Row(slots[3], 20, IDS[:3], 3)])[0].logits
        said[-1].append(after)
        for slot in slots:
            engine.close(slot)
    assert np.array_equal(said[0], said[1])


def test_the_context_ends_where_the_largest_engine_does(world):
    assert world.engine.context == 511, "two tokens are run where one is meant"
    engine = world.engine
    slot = engine.open()
    ids = (IDS * 2)[: engine.context]
    final_choices(engine, [Row(slot, 0, ids[:-1], 0)])
    (last,) = final_choices(engine, [Row(slot, engine.context - 1, ids[-1:])])
    assert np.isfinite(last.logits).all()
    with pytest.raises(ValueError, match="ends at 512 of 511"):
        final_choices(engine, [Row(slot, engine.context, [5])])
    engine.close(slot)


def test_a_shape_that_repeats_is_recorded_once_and_replayed(built):
    world = World(built[0])
    engine, device = world.engine, world.device
    slot = engine.open()
    said = []
    for _ in range(2):
        said += [final_choices(engine, [Row(slot, 0, IDS[:9])])[0].logits]
    recorded, replayed, runs = device.captures, device.replays, len(world.trt.profiles)
    bound = world.trt.bindings
    for _ in range(3):
        said += [final_choices(engine, [Row(slot, 0, IDS[:9])])[0].logits]
    assert (device.captures, device.replays) == (recorded, replayed + 3 * 3), "a graph a segment"
    assert (len(world.trt.profiles), world.trt.bindings) == (runs, bound), "nothing else ran"
    assert all(np.array_equal(logits, said[0]) for logits in said)
    other = final_choices(engine, [Row(slot, 0, IDS[3:12])])[0].logits
    assert not np.array_equal(other, said[0]), "what is replayed reads what is there now"


def test_where_recording_fails_steps_run_as_they_are(built, plain, caplog, monkeypatch):
    def capture(self, record):
        record()
        self._queue.clear()
        raise EngineError("CUDA failed in cudaStreamEndCapture")

    monkeypatch.setattr(HostDevice, "capture", capture)
    world = World(built[0])
    for way in ("one token at a time", "verify of 4 tokens"):
        assert np.array_equal(WAYS[way](world.engine, IDS), WAYS[way](plain, IDS))
    assert caplog.text.count("not recorded as CUDA graphs") == 1
    assert world.device.replays == 0


@pytest.mark.parametrize("recordable", [True, False])
def test_tensorrt_rtx_is_asked_whether_it_can_be_recorded(built, plain, recordable, caplog):
    world = World(built[0], rtx=recordable)
    way = WAYS["one token at a time"]
    assert np.array_equal(way(world.engine, IDS), way(plain, IDS))
    assert bool(world.device.replays) == recordable
    assert ("cannot be recorded" in caplog.text) != recordable


def test_graphs_are_not_kept_without_end(built, monkeypatch):
    monkeypatch.setattr("engines.tensorrt_backend.stage_run.MAX_GRAPHS", 3)
    world = World(built[0])
    slot = world.engine.open()
    for width in (3, 4, 5, 6):
        for _ in range(3):
            final_choices(world.engine, [Row(slot, 0, IDS[:width])])
    assert len(world.engine._runner.recorder.graphs) == 3


def test_calls_take_the_profile_that_is_tuned_for_them(world):
    engine, taken = world.engine, world.trt.profiles
    slots = [engine.open() for _ in range(3)]
    for width, expected in ((1, 0), (2, 0), (5, 1), (64, 2)):
        for slot in slots:
            engine.truncate(slot, 0)
        taken.clear()
        final_choices(engine, [Row(slots[0], 0, IDS[:width], 0)])
        assert set(taken) <= {expected}, width
    taken.clear()
    final_choices(engine, [Row(slot, 0, IDS[:16], 0) for slot in slots])
    assert set(taken) <= {1}
    for slot in slots:
        engine.close(slot)


@pytest.mark.parametrize("aliases", [True, False])
def test_a_draft_of_single_tokens(tiny_bundle, built, aliases, caplog):
    caplog.set_level("INFO")
    device = HostDevice(lazy=True)
    trt = FakeTensorrt(device, aliases=aliases)
    draft = open_draft(built[1], "cpu-fp32", 3, trt=trt, device=device)
    assert ("does not declare" in caplog.text) != aliases
    assert (draft.min_tokens, draft.context, draft.slots) == (1, 512, 3)
    as_written = OrtSettings(slots=3, min_tokens=1, rewrite=False)
    plain = load_draft(tiny_bundle, "cpu-fp32", as_written)
    for way in ("one token at a time", "prefill in ragged chunks, growing"):
        assert np.array_equal(WAYS[way](draft, IDS), WAYS[way](plain, IDS))
    slot = draft.open()
    final_choices(draft, [Row(slot, 0, IDS[:70], 0)])
    assert draft.cached(slot) == 70
    asked = list(draft._frames.values())[-1]._select.array
    assert not device.numbers(asked[:1]).any(), "a head that nobody asks answers for the first"


def test_answers_of_several_devices_are_those_of_the_target_alone(built, plain, house):
    cloud = house(World(built[0]).engine)
    requests = [Request(tuple(IDS[n : n + 90]), 20, Sampling(1.0, seed=n)) for n in range(4)]
    loops = [cloud.device(cloud.hostile()) for _ in requests]
    for answer, request in zip(cloud.together(loops, requests), requests, strict=True):
        expected = write_alone(plain, request.prompt, request.max_tokens, request.sampling)
        assert answer.stats.token_ids == expected


def test_slots_are_limited_in_bytes_of_the_device(built):
    world = World(built[0])
    engine = world.engine
    assert engine.free() == world.device.memory()[0]
    assert default_limit(engine) == engine.free() // 2
    engine.limit(3 * engine.slot_bytes(100))
    assert engine.slots == 3
    slots = [engine.open() for _ in range(3)]
    before = engine.free()
    final_choices(engine, [Row(slot, 0, IDS[:9]) for slot in slots])
    assert before - engine.free() >= 3 * engine.slot_bytes(100)


def test_a_cache_that_is_not_written_in_place_is_found_before_any_answer(built):
    with pytest.raises(EngineError, match=r"not written in place; use --backend onnxruntime"):
        World(built[0], strays=True)
    device = HostDevice()
    trt = FakeTensorrt(device, strays=True)
    with pytest.raises(EngineError, match=r"draft/cpu-fp32.*%.*use a draft of profile cpu-compat"):
        open_draft(built[1], "cpu-fp32", 1, trt=trt, device=device)


def test_a_context_that_cannot_be_made_and_a_run_that_fails(built):
    with pytest.raises(EngineError, match=r"makes no context.*edgespec build .* --profile"):
        World(built[0], fails=("context",))
    with pytest.raises(EngineError, match=r"failed \(cudaErrorLaunchFailure\)"):
        World(built[0], fails=("execute",))


def test_a_call_that_no_profile_takes_is_refused_with_its_shape(world):
    engine = world.engine._runner.model.engines[0]
    shapes = {name: (9,) * len(port.shape) for name, port in engine.inputs.items()}
    with pytest.raises(EngineError, match=r"input_ids \[9, 9\].*edgespec build"):
        engine.profile(shapes)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (
            {"capability": "8.7"},
            r"capability 8\.7, and none answers here; build it again: edgespec",
        ),
        ({"version": "11.4"}, "was built by TensorRT 11.4, and this machine has TensorRT 10.3"),
    ],
)
def test_engines_of_another_machine_name_the_command(
    tiny_bundle, tmp_path, changes, words, monkeypatch, caplog
):
    bundle = with_engines(tiny_bundle, tmp_path / "bundle", [DRAFT], (512,), **changes)
    device = HostDevice()
    trt = FakeTensorrt(device)
    with pytest.raises(EngineError, match=words):
        open_draft(bundle, "cpu-fp32", 1, trt=trt, device=device)
    monkeypatch.setattr(tensorrt, "load", lambda: trt)
    assert not tensorrt.runs_here(bundle, DRAFT)
    assert "stay unused" in caplog.text
    assert backends.open_draft(bundle, "cpu-fp32", 1, 1).min_tokens == 1, "ONNX Runtime runs it"


def test_what_was_never_built_names_the_command(tiny_bundle):
    device = HostDevice()
    trt = FakeTensorrt(device)
    with pytest.raises(EngineError, match=r"edgespec build .* --profile cpu-fp32 --graphs draft"):
        open_draft(tiny_bundle, "cpu-fp32", 1, trt=trt, device=device)
    with pytest.raises(EngineError, match=r"edgespec build .* --profile cuda --graphs target"):
        open_target(tiny_bundle, trt=trt, device=device)


@pytest.fixture
def with_a_gpu(monkeypatch):
    """TensorRT, cuda-python and one GPU, as far as anybody asks for them."""
    monkeypatch.setattr(tensorrt, "load", lambda: FakeTensorrt(None))
    monkeypatch.setattr(tensorrt, "Runtime", lambda: None)
    monkeypatch.setattr(tensorrt, "count", lambda runtime: 1)


@pytest.mark.parametrize(
    ("modules", "gpus", "words"),
    [
        (("no_such_module",), 1, "cuda-python is not installed"),
        (("math",), 0, "there is no GPU that this process may use"),
    ],
)
def test_engines_that_match_any_gpu_stay_unused_without_one(
    built, modules, gpus, words, monkeypatch, caplog
):
    """As those of TensorRT-RTX do that were built on a machine without a GPU."""
    assert all(engine.capability == "" for engine in built[1].manifest.engines)
    monkeypatch.setattr(tensorrt, "load", lambda: FakeTensorrt(None))
    monkeypatch.setattr("engines.cuda.MODULES", modules)
    monkeypatch.setattr(tensorrt, "count", lambda runtime: gpus)
    assert not tensorrt.runs_here(built[1], DRAFT)
    draft = backends.open_draft(built[1], "cpu-fp32", 1, 4)
    assert isinstance(draft._runner, OrtRunner)
    lines = [record for record in caplog.records if words in record.getMessage()]
    assert len(lines) == 2, "one of each call"


def test_engines_that_fail_to_open_leave_the_draft_to_onnx_runtime(
    built, with_a_gpu, monkeypatch, caplog
):
    device = HostDevice()
    monkeypatch.setattr(tensorrt, "CudaDevice", lambda: device)
    monkeypatch.setattr(tensorrt, "load", lambda: FakeTensorrt(device, strays=True))
    assert tensorrt.runs_here(built[1], DRAFT)
    draft = backends.open_draft(built[1], "cpu-fp32", 1, 4)
    assert isinstance(draft._runner, OrtRunner)
    (line,) = [record.getMessage() for record in caplog.records]
    assert line.startswith("ONNX Runtime runs draft/cpu-fp32 instead of its engines: the TensorRT")


def test_a_draft_of_a_tensorrt_profile_needs_its_engines(built, monkeypatch):
    manifest = built[1].manifest
    drafts = {"cuda": manifest.drafts["cpu-fp32"]}
    bundle = Bundle(built[1].folder, msgspec.structs.replace(manifest, drafts=drafts))
    monkeypatch.setattr(tensorrt, "load", lambda: FakeTensorrt(None))
    monkeypatch.setattr("engines.cuda.MODULES", ("no_such_module",))
    with pytest.raises(EngineError, match="cuda-python is not installed"):
        backends.open_draft(bundle, "cuda", 1, 4)


def test_the_registry_takes_engines_that_match(built, with_a_gpu, monkeypatch):
    opened = []
    monkeypatch.setattr(tensorrt, "open_draft", lambda *about: opened.append(about))
    backends.open_draft(built[1], "cpu-fp32", 1, 4)
    assert opened == [(built[1], "cpu-fp32", 4)]
    assert backends.open_draft(built[1], "cpu-int8", 1, 4).slots == 4, "has no engines"
    with pytest.raises(UsageError, match="no draft for profile"):
        backends.open_draft(built[1], "rpi5", 1, 4)
    with pytest.raises(UsageError, match="no back end 'abacus'; choose from onnxruntime, tensorrt"):
        backends.open_target(built[0], "abacus", 1)
    with pytest.raises(EngineError, match=r"edgespec build .* --graphs target"):
        backends.open_target(built[1], "tensorrt", 1)


def test_an_engine_that_is_dropped_gives_its_memory_back_at_once(built):
    """A second one, as the doctor of exactness loads, may not fit beside it."""
    world = World(built[0])
    slot = world.engine.open()
    for _ in range(4):
        final_choices(world.engine, [Row(slot, 0, IDS[:9])])
    assert len(world.engine._runner.recorder.graphs)
    there = world.device.memory()[0]
    gc.collect()
    gc.disable()
    try:
        del world.engine
        assert world.device.memory()[0] > there
        assert world.device.memory()[0] == world.device.memory()[1]
    finally:
        gc.enable()


def test_bfloat16_becomes_numbers():
    numbers = np.array([1.5, -3.25, 0.0, np.inf], np.float32)
    bits = (numbers.view(np.uint32) >> 16).astype(np.uint16)
    port = Port("logits", np.dtype(np.uint16), (-1, 4), True)
    assert np.array_equal(as_numpy(bits, port), numbers)
    ids = Port("argmax", np.dtype(np.int32), (-1,), False)
    assert as_numpy(np.array([7], np.int32), ids).dtype == np.int64


def test_a_real_tensorrt_that_cannot_load_says_why(tmp_path):
    trt = pytest.importorskip("tensorrt_rtx")
    path = tmp_path / "model-512.engine"
    path.write_bytes(b"no engine" * 100)
    with pytest.raises(EngineError, match=r"TensorRT-RTX .*cannot load it.*build it again: how"):
        LoadedEngine(trt, Path(path), "how")
