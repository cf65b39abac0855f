"""A target runs one token alone, with the bits that its file gives to two."""

import numpy as np
import onnx
import pytest

from engines.base import Row, final_choices
from engines.exactness import measure
from engines.onnxruntime_backend import engine as backend
from engines.onnxruntime_backend.engine import OrtSettings, load_target, same_bits_alone
from engines.onnxruntime_backend.two_queries import with_two_queries
from engines.toy import ToyEngine
from export.bundle import ExportSettings, export
from tests.engines.test_exactness import Off
from tests.export.test_graph import FAMILIES, make

IDS = np.random.default_rng(0).integers(3, 160, 60).tolist()
AS_WRITTEN = OrtSettings(rewrite=False)


@pytest.fixture
def bundle(tmp_path, request):
    make(tmp_path / "model", *FAMILIES[request.param])
    return export(ExportSettings(str(tmp_path / "model"), tmp_path / "bundle"))


def all_logits(target):
    """Of a prompt, single tokens, a batch of single tokens, and a row of three."""
    first, second = target.open(), target.open()
    steps = [
        [Row(first, 0, IDS[:1])],
        [Row(first, 1, IDS[1:40], 39)],
        [Row(first, 40, [IDS[40]])],
        [Row(second, 0, IDS[:7], 7)],
        [Row(first, 41, [IDS[41]]), Row(second, 7, [IDS[7]])],
        [Row(first, 42, IDS[42:45], 3), Row(second, 8, [IDS[8]])],
    ]
    return [choices.logits for rows in steps for choices in final_choices(target, rows)]


@pytest.mark.parametrize(
    "bundle", ["llama, grouped", "qwen3", "llama, yarn", "qwen2, tied"], indirect=True
)
def test_the_bits_are_those_of_the_file(bundle):
    alone, padded = load_target(bundle, OrtSettings()), load_target(bundle, AS_WRITTEN)
    assert (alone.min_tokens, padded.min_tokens) == (1, 2)
    for one, other in zip(all_logits(alone), all_logits(padded), strict=True):
        assert np.array_equal(one, other)


def test_every_way_gives_the_same_bits(tiny_bundle):
    cases = measure(lambda threads: load_target(tiny_bundle, OrtSettings(threads)), (1,))
    assert all(case.identical for case in cases)


def test_a_machine_with_other_products_for_one_row_pads(tiny_bundle, monkeypatch):
    assert same_bits_alone(ToyEngine()) and not same_bits_alone(Off())
    monkeypatch.setattr(backend, "same_bits_alone", lambda engine: False)
    assert load_target(tiny_bundle, OrtSettings()).min_tokens == 2


def change(model, change):
    for node in model.graph.node:
        if node.op_type == "Attention":
            change(node)
    return model.SerializeToString()


def test_another_form_is_left_alone(tiny_bundle):
    file = tiny_bundle.path(tiny_bundle.manifest.target.segments[0].graph).read_bytes()
    assert with_two_queries(file)
    model = onnx.load_model_from_string(file)
    masked = change(model, lambda node: node.input.__setitem__(3, "mask"))
    assert with_two_queries(masked) is None
    heads = onnx.helper.make_attribute("q_num_heads", 4)
    model = onnx.load_model_from_string(file)
    assert with_two_queries(change(model, lambda node: node.attribute.append(heads))) is None
    model = onnx.load_model_from_string(file)
    assert with_two_queries(change(model, lambda node: setattr(node, "op_type", "Mha"))) is None
    assert with_two_queries(b"\x08\x0cnot a graph") is None
