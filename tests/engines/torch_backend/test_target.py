"""The torch back end on torch's CPU device: the same numbers as ONNX Runtime's, and exact."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper

from edge_runtime.handshake import DeviceIdentity
from edge_runtime.loop import EdgeLoop
from edgespec.config import EdgeSettings, Request
from edgespec.errors import BundleError, EngineError, UsageError
from edgespec.manifest import Bundle
from edgespec.sampling import Sampling
from edgespec.transport import DealerLink
from engines.alone import write_alone
from engines.base import Row, final_choices
from engines.drafters.model import ModelDrafter
from engines.drafters.ngram import NgramDrafter
from engines.exactness import REFERENCE_TOKENS, WAYS, measure
from engines.external_data import numbers
from engines.machine.profiles import precisions
from engines.onnxruntime_backend import engine as ort
from engines.torch_backend.device import TorchStore
from engines.torch_backend.graphs import GraphReplay
from engines.torch_backend.model import GROUP_INPUTS, pack, packable
from engines.torch_backend.runner import FIXED, TorchSettings
from engines.torch_backend.target import load_target
from engines.torch_backend.weights import GraphFile, PackedMatrix
from export.bundle import ExportSettings, export
from tests.export.test_graph import FAMILIES, make
from tests.export.test_heads import write_heads

CPU = torch.device("cpu")
AS_CUDA = FIXED["cuda"]
KINDS = ["llama, grouped", "llama 3", "llama, biases everywhere", "qwen2, tied", "qwen3"]


def exported(folder, kind, **settings):
    make(folder / "model", *FAMILIES[kind])
    return export(ExportSettings(str(folder / "model"), folder / "bundle", **settings))


def said(engine, *rows):
    return [choices.logits for choices in final_choices(engine, rows)]


def everything(engine):
    """What an engine says in chunks, in a ragged batch, after a rollback, and at its exits."""
    ids = np.random.default_rng(0).integers(3, 160, 90).tolist()
    one, two = engine.open(), engine.open()
    found = said(engine, Row(one, 0, ids[:40], 40))
    found += said(engine, Row(one, 40, ids[40:45], 5), Row(two, 0, ids[:12], 12))
    engine.truncate(one, 20)
    for step in engine.run([Row(one, 20, ids[20:27], 7, hints=True), Row(two, 12, ids[12:13])]):
        found += [choices.logits for choices in step.choices if choices is not None]
    return found


@pytest.mark.parametrize("kind", KINDS)
def test_parity_with_onnx_runtime(tmp_path, kind):
    bundle = exported(tmp_path, kind, split=(1, 3))
    wanted = everything(ort.load_target(bundle, ort.OrtSettings()))
    for settings in (
        TorchSettings(),
        TorchSettings(shapes=AS_CUDA, slots=2),  # fewer than a window has
        TorchSettings(exact=False),
    ):
        found = everything(load_target(bundle, settings))
        assert len(found) == len(wanted) == 7
        for one, other in zip(found, wanted, strict=True):
            assert one.dtype == other.dtype == np.float32
            assert np.abs(one - other).max() <= 1e-4


def test_plain_operators_have_the_same_weights(tmp_path):
    make(tmp_path / "model", *FAMILIES["llama, grouped"])
    found = []
    for opset in (24, 21):
        settings = ExportSettings(str(tmp_path / "model"), tmp_path / f"b{opset}", opset=opset)
        found.append(everything(load_target(export(settings), TorchSettings())))
    assert all(np.array_equal(one, other) for one, other in zip(*found, strict=True))


@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8", "int4"])
def test_a_bundle_whose_files_have_two_links(tmp_path, precision):
    bundle = exported(tmp_path, "llama, grouped", precisions=precisions(precision))
    copy = Bundle.open(shutil.copytree(bundle.folder, tmp_path / "linked", copy_function=os.link))
    linked = everything(load_target(copy, TorchSettings(floats="fp32")))
    shutil.rmtree(bundle.folder)
    alone = everything(load_target(copy, TorchSettings(floats="fp32")))
    assert all(np.array_equal(one, other) for one, other in zip(linked, alone, strict=True))


def test_all_types_of_weights_are_read_as_onnx_ir_does(tmp_path):
    for precision in ("fp32", "fp16", "int8", "int4"):
        bundle = exported(tmp_path / precision, "llama, grouped", precisions=precisions(precision))
        for segment in bundle.manifest.target.segments:
            for value in ir.load(bundle.path(segment.graph)).graph.initializers.values():
                tensor = value.const_value
                found, wanted = numbers(tensor), tensor.numpy()
                assert found.shape == wanted.shape
                assert np.array_equal(found.astype(np.float64), wanted.astype(np.float64))


def test_weights_that_cannot_be_read(tmp_path):
    bundle = exported(tmp_path, "llama, grouped")
    name = "model.layers.0.mlp.down_proj.weight"
    path = bundle.path(bundle.manifest.target.segments[0].graph)
    data = Path(ir.load(path).graph.initializers[name].const_value.path)
    data.write_bytes(data.read_bytes()[:100])
    with pytest.raises(BundleError, match=r"\.data: model.*down_proj\.weight cannot be read"):
        GraphFile(path).tensor(name)
    data.unlink()
    with pytest.raises(BundleError, match="cannot be read"):
        GraphFile(path).tensor(name)
    data.symlink_to("/etc/hostname")
    with pytest.raises(BundleError, match="does not lie beside its graph"):
        GraphFile(path).tensor(name)


def test_trained_exit_heads(tiny_llama_folder, tmp_path):
    heads = write_heads(tmp_path / "heads.safetensors")
    bundle = export(
        ExportSettings(str(tiny_llama_folder), tmp_path / "bundle", segments=3, exit_heads=heads)
    )
    hints = []
    for engine in (
        ort.load_target(bundle, ort.OrtSettings()),
        load_target(bundle, TorchSettings()),
    ):
        steps = list(engine.run([Row(engine.open(), 0, list(range(10, 40)), 4, hints=True)]))
        hints.append([step.choices[0] for step in steps])
    for one, other in zip(*hints, strict=True):
        assert np.abs(one.logits - other.logits).max() <= 1e-4 * np.abs(one.logits).max()
        assert np.array_equal(one.argmax, other.argmax)
        assert np.array_equal(one.top_ids[:, :8], other.top_ids[:, :8])


@pytest.mark.parametrize(
    ("precision", "settings", "threads"),
    [
        ("fp32", TorchSettings(), (1, 2)),
        ("fp32", TorchSettings(shapes=AS_CUDA), (2,)),
        ("int8", TorchSettings(), (2,)),
        ("int4", TorchSettings(), (2,)),
        ("int4", TorchSettings(floats="bf16", packed=True), (2,)),
    ],
    ids=["fp32", "CUDA's shapes", "int8", "int4", "packed int4"],
)
def test_fixed_shapes_are_exact(tmp_path, precision, settings, threads):
    """Every way, growing from bucket to bucket on the way."""
    bundle = exported(tmp_path, "llama, grouped", split=(2,), precisions=precisions(precision))
    cases = measure(lambda count: load_target(bundle, with_threads(settings, count)), threads)
    assert len(cases) == len(threads) * len(WAYS) and REFERENCE_TOKENS > 256
    assert [case.name for case in cases if not case.identical] == []


def with_threads(settings, count):
    return TorchSettings(**{**vars(settings), "threads": count})


def test_shapes_as_they_come_see_their_company(tmp_path):
    """Else there would be nothing to pay for."""
    bundle = exported(tmp_path, "llama, grouped")
    cases = measure(lambda count: load_target(bundle, TorchSettings(exact=False)), threads=(1,))
    assert any(not case.identical for case in cases)
    assert all(case.largest < 1e-4 for case in cases)


@pytest.mark.parametrize(("precision", "kind"), [("int8", "INT8"), ("int4", "INT4")])
def test_integers_become_what_dequantize_linear_gives(tmp_path, precision, kind):
    bundle = exported(tmp_path, "llama", precisions=precisions(precision))
    name = "model.layers.1.mlp.down_proj.weight"
    blocks = GraphFile(bundle.path(bundle.manifest.target.segments[0].graph)).matrix(name)
    assert isinstance(blocks, PackedMatrix) and blocks.bits == int(precision[3:])
    model = onnx.load(bundle.path(bundle.manifest.target.segments[0].graph))
    stored = [one for one in model.graph.initializer if one.name.startswith(f"{name}.")]
    assert [one.data_type for one in stored] == [getattr(TensorProto, kind), TensorProto.FLOAT]
    node = helper.make_node(
        "DequantizeLinear", [one.name for one in stored], ["y"], axis=0, block_size=GROUP_INPUTS
    )
    output = helper.make_tensor_value_info("y", TensorProto.FLOAT, list(blocks.values.shape))
    graph = helper.make_graph([node], "one", [], [output], stored)
    single = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 24)], ir_version=12)
    session = onnxruntime.InferenceSession(single.SerializeToString())
    assert np.array_equal(blocks.floats().numpy(), session.run(None, {})[0])


@pytest.mark.parametrize("inputs", [32, 64, 128, 96])
def test_packed_int4_stands_for_the_same_numbers(inputs):
    """Scales that bfloat16 holds, and one input at a time: the product is the matrix itself."""
    random = torch.Generator().manual_seed(0)
    values = torch.randint(-8, 8, (inputs, 64), generator=random, dtype=torch.int8)
    scales = 2.0 ** torch.randint(-6, 1, (inputs // GROUP_INPUTS, 64), generator=random).float()
    assert packable(values, torch.bfloat16) and not packable(values, torch.float16)
    bias = torch.ones(64, dtype=torch.bfloat16)
    packed = pack(values, scales, bias, CPU)
    found = packed(torch.eye(inputs, dtype=torch.bfloat16))
    assert torch.equal(found.float(), PackedMatrix(values, scales, 4).floats() + 1)
    assert packed.nbytes < values.numel()


def test_bfloat16_is_near_and_its_logits_are_float32(tmp_path):
    bundle = exported(tmp_path, "qwen3", precisions=precisions("int4"))
    wanted = everything(load_target(bundle, TorchSettings()))
    for packed in (False, True):
        found = everything(load_target(bundle, TorchSettings(floats="bf16", packed=packed)))
        for one, other in zip(found, wanted, strict=True):
            assert one.dtype == np.float32
            error = np.sqrt(((one - other) ** 2).mean() / (other**2).mean())
            assert error < 0.05


def test_what_integers_cost_is_said(tmp_path, caplog):
    bundle = exported(tmp_path, "llama", precisions=precisions("int8"))
    with caplog.at_level("INFO", "edgespec.torch"):
        load_target(bundle, TorchSettings())
    assert "MB of float32" in caplog.text and "fixed shapes" in caplog.text


@pytest.mark.parametrize("sampling", [Sampling(), Sampling(1.0, top_p=0.9, seed=3)])
def test_answers_are_those_of_the_target_alone(tiny_bundle, house, sampling):
    engine = load_target(tiny_bundle, TorchSettings())
    home = house(engine)
    settings = ort.device_settings("cpu-int8", 1, 4)
    drafter = ModelDrafter(ort.load_draft(tiny_bundle, "cpu-int8", settings), "tiny")
    requests = [Request((5, 9, 40 + n, 7), 24, sampling) for n in range(3)]
    wanted = [home.alone(request) for request in requests]
    assert home.answer(drafter, requests[0]).stats.token_ids == wanted[0]
    assert home.answer(home.hostile(), requests[1]).stats.token_ids == wanted[1]
    devices = [home.device(home.hostile()) for _ in requests]
    answers = home.together(devices, requests)
    assert [answer.stats.token_ids for answer in answers] == wanted


@contextlib.contextmanager
def served(bundle, *options):
    """The endpoint of a cloud in another process."""
    command = [sys.executable, "-m", "edgespec", "cloud-run", str(bundle.folder)]
    process = subprocess.Popen(
        [*command, "--bind", "tcp://127.0.0.1:*", "--threads", "1", *options],
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        yield listening(process)
    finally:
        process.kill()
        process.communicate()


def listening(process):
    seen = []
    for line in process.stderr:
        seen.append(line)
        if "listening on" in line:
            return line.split()[-1]
    raise AssertionError(seen)


def test_a_cloud_on_torch_answers_a_device(tiny_bundle):
    request = Request((5, 6, 7, 5, 6), 20, Sampling(0.8, seed=1))
    with served(tiny_bundle, "--backend", "torch") as endpoint:
        settings = EdgeSettings(connect=endpoint)
        link = DealerLink(endpoint)
        identity = DeviceIdentity(DeviceIdentity.of(tiny_bundle, "a device").hello)
        with contextlib.closing(link):
            loop = EdgeLoop.connect(link, NgramDrafter(), identity, settings)
            answer = loop.start(request)
            for _ in loop.write(answer):
                pass
    engine = load_target(tiny_bundle, TorchSettings())
    assert answer.stats.token_ids == write_alone(
        engine, request.prompt, request.max_tokens, request.sampling
    )


def test_memory_that_is_not_there_is_one_sentence():
    store = TorchStore(CPU, 1)
    with pytest.raises(EngineError, match=r"torch has no memory left .*--kv-memory"):
        store.zeros((1 << 20, 64, 2048, 128), np.float32)


def test_others_find_their_threads_again(tiny_bundle):
    before = torch.get_num_threads()
    engine = load_target(tiny_bundle, TorchSettings(threads=before + 1))
    final_choices(engine, [Row(engine.open(), 0, [1, 2, 3])])
    assert torch.get_num_threads() == before


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is CUDA")
def test_a_device_that_is_not_there(tiny_bundle):
    with pytest.raises(UsageError, match="no CUDA device here"):
        load_target(tiny_bundle, TorchSettings(device="cuda"))


def test_a_weight_that_is_missing_is_named(tiny_bundle):
    path = tiny_bundle.path(tiny_bundle.manifest.target.head)
    with pytest.raises(BundleError, match=r"head\.onnx has no weight model\.norm\.weight"):
        GraphFile(path).tensor("model.norm.weight")


def test_a_damaged_bundle_is_named(tiny_bundle, tmp_path):
    bundle = Bundle.open(shutil.copytree(tiny_bundle.folder, tmp_path / "bundle"))
    path = bundle.path("target/head.data")
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(BundleError, match="is damaged"):
        load_target(bundle, TorchSettings())


class Recorder:
    """Stands for `torch.cuda.CUDAGraph`, which needs CUDA: replaying does nothing."""

    made = 0

    def __init__(self):
        Recorder.made += 1
        self.replayed = 0

    def replay(self):
        self.replayed += 1


def test_the_second_use_of_a_shape_is_recorded_and_later_ones_replayed(monkeypatch):
    """The bookkeeping alone: what CUDA does with it is not proven here."""
    monkeypatch.setattr(torch.cuda, "CUDAGraph", Recorder)
    monkeypatch.setattr(torch.cuda, "graph", lambda graph, pool: contextlib.nullcontext())
    replay, calls = GraphReplay("scratch"), []

    def launch(key):
        return replay.run(key, lambda: calls.append(key) or key)

    assert [launch(key) for key in "ababaab"] == list("ababaab")
    assert calls == ["a", "b", "a", "b"] and Recorder.made == 2
    for number in range(100):
        launch(number)
    launch("a")
    assert calls[-1] == "a", "forgotten, so it runs as it is once more"
