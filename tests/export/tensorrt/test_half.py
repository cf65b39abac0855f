"""The copy of a graph that TensorRT reads: half floats, a capacity, and the same mask."""

import re

import ml_dtypes
import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest

from edgespec.errors import EngineError
from edgespec.manifest import COMPAT_OPSET, MAIN_OPSET
from engines.machine.profiles import precisions
from export.bundle import ExportSettings, export
from export.tensorrt.half import Narrowed
from export.tensorrt.pinned import pin

CAPACITY = 256
FLOATS = {ir.DataType.FLOAT16: np.float16, ir.DataType.FLOAT: np.float32}


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
                segments=2,
                opset=opset,
            )
            made[key] = export(settings)
        return made[key]

    return bundle


def inputs(path, capacity, seed=0):
    """Two rows of three tokens over 5 and 9 cached positions, and garbage past them."""
    random = np.random.default_rng(seed)
    starts, tokens = np.array([5, 9]), 3
    known = {
        "input_ids": random.integers(0, 300, (2, tokens)),
        "position_ids": starts[:, None] + np.arange(tokens),
        "write_indices": starts,
        "kv_lengths": starts + tokens,
        "select": np.arange(2 * tokens),
    }
    sizes = {"batch": 2, "tokens": tokens, "capacity": capacity}
    given = {}
    for value in ir.load(path).graph.inputs:
        shape = [dim if isinstance(dim, int) else sizes.get(dim.value, 0) for dim in value.shape]
        if value.name in known:
            given[value.name] = known[value.name]
        else:
            given[value.name] = random.standard_normal(shape).astype(FLOATS[value.dtype])
    return given


def halved(given):
    return {k: v.astype(np.float16) if v.dtype == np.float32 else v for k, v in given.items()}


def outputs(path, given):
    options = ort.SessionOptions()
    options.log_severity_level = 3
    session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    names = [value.name for value in session.get_outputs()]
    return dict(zip(names, session.run(None, given), strict=True))


def test_a_pinned_graph_has_the_mask_that_lengths_meant(tiny_bundle):
    path = tiny_bundle.path("target/segment-01.onnx")
    given = inputs(path, CAPACITY)
    model = ir.load(path)
    pin(model, CAPACITY)
    attentions = [node for node in model.graph if node.op_type == "Attention"]
    assert attentions and all(node.inputs[6] is None for node in attentions)
    pinned = path.with_name(".pinned.onnx")
    ir.save(model, pinned)
    before, after = outputs(path, given), outputs(pinned, given)
    pinned.unlink()
    for name, value in before.items():
        np.testing.assert_allclose(after[name], value, atol=1e-5)


def test_a_pinned_graph_does_not_look_past_a_row(tiny_bundle):
    path = tiny_bundle.path("target/segment-01.onnx")
    given = inputs(path, CAPACITY)
    model = ir.load(path)
    pin(model, CAPACITY)
    pinned = path.with_name(".pinned.onnx")
    ir.save(model, pinned)
    first = outputs(pinned, given)["hidden.2"]
    for name in given:
        if name.startswith("cache"):
            given[name][0, :, 8:] += 5.0
    second = outputs(pinned, given)["hidden.2"]
    pinned.unlink()
    np.testing.assert_array_equal(first[0], second[0])


@pytest.mark.parametrize("precision", ["fp32", "int8", "int4"])
@pytest.mark.parametrize("opset", [MAIN_OPSET, COMPAT_OPSET])
def test_half_floats_say_nearly_the_same(bundles, precision, opset):
    path = bundles(precision, opset).path("target/segment-01.onnx")
    given = inputs(path, CAPACITY)
    wide = outputs(path, given)["features"]
    narrowed = Narrowed(path, "fp16", int8_blocks=True)
    half = outputs(narrowed.pinned(CAPACITY), halved(given))["features"]
    narrowed.remove()
    assert half.dtype == np.float16
    assert np.abs(half - wide).max() < 0.02 * np.abs(wide).max()
    assert not list(path.parent.glob(".*"))


def test_norms_written_out_stay_fp32(bundles):
    """By the types in the graph: ONNX Runtime's CPU has no fp16 kernels for them anyway."""
    path = bundles("int8", COMPAT_OPSET).path("target/segment-01.onnx")
    narrowed = Narrowed(path, "fp16", int8_blocks=True)
    model = onnx.shape_inference.infer_shapes(
        onnx.load(narrowed.pinned(CAPACITY), load_external_data=False)
    )
    narrowed.remove()
    kinds = {value.name: value.type.tensor_type.elem_type for value in model.graph.value_info}
    kinds |= {value.name: value.data_type for value in model.graph.initializer}
    seen = set()
    for node in model.graph.node:
        if node.op_type in ("Pow", "ReduceMean", "Sqrt", "Div"):
            seen.add(node.op_type)
            assert kinds[node.output[0]] == kinds[node.input[0]] == onnx.TensorProto.FLOAT
        if node.op_type == "Sigmoid":
            assert kinds[node.output[0]] == onnx.TensorProto.FLOAT16
    assert len(seen) == 4


def test_int8_blocks_become_floats_where_they_are_not_taken(bundles):
    path = bundles("int8").path("target/segment-01.onnx")
    given = inputs(path, CAPACITY)
    wide = outputs(path, given)["features"]
    narrowed = Narrowed(path, "fp16", int8_blocks=False)
    pinned = narrowed.pinned(CAPACITY)
    assert "DequantizeLinear" not in {node.op_type for node in ir.load(pinned).graph}
    half = outputs(pinned, halved(given))["features"]
    narrowed.remove()
    assert np.abs(half - wide).max() < 0.02 * np.abs(wide).max()


def test_quantised_values_are_not_copied(bundles):
    """Only scales and tables are written anew."""
    path = bundles("int4").path("target/segment-01.onnx")
    narrowed = Narrowed(path, "fp16", int8_blocks=True)
    model = ir.load(narrowed.pinned(CAPACITY))
    places = {
        value.name: value.const_value.location
        for value in model.graph.initializers.values()
        if isinstance(value.const_value, ir.ExternalTensor)
    }
    narrowed.remove()
    values = {place for name, place in places.items() if name.endswith(".values")}
    scales = {place for name, place in places.items() if name.endswith(".scales")}
    assert values == {"segment-01.data"}
    assert scales == {".segment-01.floats.data"}


def test_bf16_where_fp16_is_too_small(bundles):
    bundle = bundles("fp32")
    path = bundle.path("target/segment-01.onnx")
    model = ir.load(path)
    norm = model.graph.initializers["model.norm.weight"]
    norm.const_value = ir.Tensor(np.full(64, 1e5, np.float32), name=norm.name)
    large = path.with_name("large.onnx")
    ir.save(model, large)
    with pytest.raises(EngineError, match=re.escape("model.norm.weight is too large for fp16")):
        Narrowed(large, "fp16", int8_blocks=True)
    narrowed = Narrowed(large, "bf16", int8_blocks=True)
    weight = ir.load(narrowed.pinned(CAPACITY)).graph.initializers["model.norm.weight"].const_value
    assert weight.dtype == ir.DataType.BFLOAT16
    assert (weight.numpy() == ml_dtypes.bfloat16(1e5)).all()
    narrowed.remove()
    for left in (large, *path.parent.glob(".*")):
        left.unlink()


def test_fp16_graphs_are_only_pinned(bundles):
    path = bundles("fp16").path("target/segment-01.onnx")
    narrowed = Narrowed(path, "fp16", int8_blocks=True)
    before = ir.load(path).graph.initializers
    after = ir.load(narrowed.pinned(CAPACITY)).graph.initializers
    narrowed.remove()
    for name, value in before.items():
        if isinstance(value.const_value, ir.ExternalTensor):
            assert after[name].const_value.location == value.const_value.location
