"""Every graph of a bundle builds into a TensorRT engine on the CPU; one that cannot is named."""

import os
import shutil
import signal

import numpy as np
import onnx_ir as ir
import pytest

from edgespec.errors import EngineError
from edgespec.manifest import COMPAT_OPSET, MAIN_OPSET, SELF_DRAFT, Shapes
from engines.machine.profiles import precisions
from engines.tensorrt_backend.api import build_into, load, log, make_builder, make_network
from export.bundle import ExportSettings, export
from export.tensorrt.builder import _check_operators, build_engine
from export.tensorrt.half import Narrowed
from tests.export.test_compat import trimmed_and_trained

pytest.importorskip("tensorrt_rtx")
SHAPES = [Shapes(batch=(1, 2, 4), tokens=(1, 8, 64), selected=(1, 8, 64))]


def build(path, tmp_path, *, floats="fp16", shapes=SHAPES, tell=lambda note: None):
    """The size of the engine."""
    narrowed = Narrowed(path, floats, int8_blocks=True)
    try:
        out = tmp_path / "engine"
        build_engine(load(), narrowed.pinned(256), out, shapes, name=path.name, tell=tell)
    finally:
        narrowed.remove()
    return out.stat().st_size


@pytest.fixture(scope="module")
def bundles(tmp_path_factory, tiny_llama_folder):
    made = {}

    def bundle(precision, opset=MAIN_OPSET):
        key = f"{precision}-{opset}"
        if key not in made:
            settings = ExportSettings(
                str(tiny_llama_folder),
                tmp_path_factory.mktemp(key) / "bundle",
                precisions=precisions(precision),
                opset=opset,
                segments=2,
                drafts=(("gpu-fp16", SELF_DRAFT), ("cpu-int4", SELF_DRAFT)),
            )
            made[key] = export(settings)
        return made[key]

    return bundle


@pytest.mark.parametrize("precision", ["fp16", "int8", "int4"])
@pytest.mark.parametrize(
    "graph",
    ["target/segment-00.onnx", "target/segment-01.onnx", "target/head.onnx", "target/exit-00.onnx"],
)
def test_every_graph_of_a_target_builds(bundles, tmp_path, precision, graph):
    assert build(bundles(precision).path(graph), tmp_path) > 1000


@pytest.mark.parametrize("draft", ["gpu-fp16", "cpu-int4"])
def test_drafts_build(bundles, tmp_path, draft):
    assert build(bundles("fp16").path(f"draft/{draft}/model.onnx"), tmp_path) > 1000


def test_plain_operators_build(bundles, tmp_path):
    path = bundles("int8", COMPAT_OPSET).path("target/segment-01.onnx")
    assert build(path, tmp_path) > 1000


def test_bf16_builds(bundles, tmp_path):
    path = bundles("int4").path("target/segment-01.onnx")
    assert build(path, tmp_path, floats="bf16") > 1000


def test_integers_stay_integers(bundles, tmp_path):
    """A matrix large enough to be seen beside the kernels of an engine: 2048 x 2048."""
    sizes = {}
    for bits in ("int4", "int8"):
        path = bundles(bits).path("target/head.onnx")
        model = ir.load(path)
        product = next(node for node in model.graph if node.op_type == "MatMul")
        unpacking = product.inputs[1].producer()
        values, scales = unpacking.inputs[0], unpacking.inputs[1]
        assert (values.dtype, scales.dtype) == (ir.DataType.INT8, ir.DataType.FLOAT)
        kind = {"int4": ir.DataType.INT4, "int8": ir.DataType.INT8}[bits]
        large = np.random.default_rng(0).integers(-8, 8, (2048, 2048)).astype(kind.numpy())
        for value, array in ((values, large), (scales, np.ones((64, 2048), np.float32))):
            value.const_value = ir.Tensor(
                array, name=value.name, dtype=ir.DataType.FLOAT if value is scales else kind
            )
            value.type = ir.TensorType(value.const_value.dtype)
            value.shape = ir.Shape(array.shape)
        reshape = next(node for node in model.graph if node.op_type == "Reshape")
        reshape.inputs[1].const_value = ir.Tensor(np.array([-1, 2048]), name="flat")
        for value in model.graph.inputs:
            if value.name == "features":
                value.shape = ir.Shape(["batch", "tokens", 2048])
        for value in model.graph.outputs:
            if value.name == "logits":
                value.shape = ir.Shape(["selected", 2048])
        ir.save(model, tmp_path / "large.onnx")
        sizes[bits] = build(tmp_path / "large.onnx", tmp_path)
    assert 4e6 < sizes["int8"] < 8e6
    assert 2e6 < sizes["int4"] < sizes["int8"] - 1.5e6


def first(model, kind):
    return next(node for node in model.graph if node.op_type == kind)


def unknown(model):
    first(model, "Swish").op_type = "Nonsense"


def clash(model):
    weight = first(model, "MatMul").inputs[1]
    weight.const_value = ir.Tensor(np.ones((56, 64), np.float16), name=weight.name)
    weight.shape = ir.Shape((56, 64))


def capped(model):
    first(model, "Attention").attributes["softcap"] = ir.AttrFloat32("softcap", 2.0)


@pytest.mark.parametrize(
    ("break_it", "sentence"),
    [
        (unknown, r"broken\.onnx, node model\.layers\.2\.mlp\.gate: it has no operator Nonsense$"),
        (clash, r"broken\.onnx, node \S+q_proj \(MatMul\): last dimension .* must match$"),
        (capped, r"broken\.onnx, node model\.layers\.2\.self_attn \(Attention\): softcap"),
    ],
)
def test_a_broken_graph_gives_one_sentence_with_the_node(bundles, tmp_path, break_it, sentence):
    path = bundles("fp16").path("target/segment-01.onnx")
    folder = shutil.copytree(path.parent, tmp_path / "target")
    model = ir.load(folder / path.name)
    break_it(model)
    ir.save(model, folder / "broken.onnx")
    with pytest.raises(EngineError, match=sentence) as caught:
        build(folder / "broken.onnx", tmp_path)
    assert "\n" not in str(caught.value)


def test_what_only_the_builder_finds_names_the_node_too(bundles, tmp_path):
    long = [Shapes(batch=(1, 1, 1), tokens=(1, 512, 512), selected=(1, 1, 1))]
    path = bundles("fp16").path("target/segment-01.onnx")
    with pytest.raises(EngineError, match=r"cannot build segment-01\.onnx: .*cache_\w+\.2\.out"):
        build(path, tmp_path, shapes=long)


def test_a_disk_that_refuses_an_engine(bundles):
    narrowed = Narrowed(bundles("fp16").path("target/exit-00.onnx"), "fp16", int8_blocks=True)
    trt = load()
    builder = make_builder(trt)
    network = make_network(trt, builder)
    assert trt.OnnxParser(network, log(trt)).parse_from_file(str(narrowed.pinned(256)))
    config = builder.create_builder_config()
    profile = builder.create_optimization_profile()
    profile.set_shape("hidden.2", (1, 1, 64), (1, 1, 64), (1, 1, 64))
    config.add_optimization_profile(profile)
    with (
        open("/dev/full", "wb", buffering=0) as full,
        pytest.raises(OSError, match="No space left on device"),
    ):
        build_into(trt, builder, network, config, full)
    narrowed.remove()


class OldParser:
    """What TensorRT 10.3 has, of what a graph of opset 24 needs."""

    def supports_operator(self, kind):
        return kind not in (
            "TensorScatter",
            "Attention",
            "RMSNormalization",
            "RotaryEmbedding",
            "Swish",
        )


def test_a_tensorrt_without_the_operators_of_opset_24(bundles):
    model = ir.load(bundles("fp16").path("target/segment-01.onnx"))
    with pytest.raises(
        EngineError, match=r"TensorScatter.*opset 24, .*older one, such as jetson-orin"
    ):
        _check_operators(load(), OldParser(), model, "target/segment-01.onnx")
    model = ir.load(bundles("int8", COMPAT_OPSET).path("target/segment-01.onnx"))
    _check_operators(load(), OldParser(), model, "target/segment-01.onnx")


def test_progress_is_told_and_an_interrupt_is_heard(bundles, tmp_path):
    path = bundles("fp16").path("target/segment-01.onnx")
    notes = []

    def tell(note):
        if not notes:
            os.kill(os.getpid(), signal.SIGINT)
        notes.append(note)

    with pytest.raises(KeyboardInterrupt):
        build(path, tmp_path, tell=tell)
    assert notes[0].endswith("%")
    assert not (tmp_path / "engine").exists()


@pytest.fixture(scope="module")
def fitted(tmp_path_factory, tiny_llama_folder):
    """A trained exit head, and a draft with a trimmed vocabulary."""
    place = tmp_path_factory.mktemp("fitted")
    draft, heads = trimmed_and_trained(tiny_llama_folder, place)
    settings = ExportSettings(
        str(tiny_llama_folder),
        place / "bundle",
        precisions=precisions("int8"),
        split=(1,),
        exit_heads=heads,
        drafts=(("cpu-int8", str(draft)),),
    )
    return export(settings)


@pytest.mark.parametrize("graph", ["target/exit-00.onnx", "draft/cpu-int8/model.onnx"])
def test_trained_exits_and_trimmed_drafts_build(fitted, tmp_path, graph):
    assert build(fitted.path(graph), tmp_path) > 1000
