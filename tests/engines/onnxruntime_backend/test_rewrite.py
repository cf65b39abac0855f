"""A rewritten draft computes what its file says, or is not rewritten."""

from collections import Counter

import numpy as np
import onnx
import pytest

from engines.base import Row, final_choices
from engines.onnxruntime_backend import session
from engines.onnxruntime_backend.engine import OrtSettings, load_draft, load_target
from engines.onnxruntime_backend.rewrite import rewritten
from export.bundle import ExportSettings, export
from export.weights import WeightFolder
from tests.export.test_compat import trimmed_and_trained
from tests.export.test_graph import FAMILIES, make

AS_WRITTEN = OrtSettings(min_tokens=1, rewrite=False)
REWRITTEN = OrtSettings(min_tokens=1)


def operators(file):
    return [node.op_type for node in onnx.load_model_from_string(file).graph.node]


def graph_file(bundle, profile="cpu-fp32"):
    return bundle.path(bundle.draft(profile).graph).read_bytes()


def apart(folder, file, name, parts, precision):
    """Stores each projection alone, as bundles of older versions have them."""
    return [folder.linear(file, part, precision) for part in parts]


def close(one, other):
    known = np.isfinite(other.logits)  # a trimmed vocabulary has others
    assert np.array_equal(known, np.isfinite(one.logits))
    expected = other.logits[known]
    assert np.abs(one.logits[known] - expected).max() <= 1e-4 * np.abs(expected).max()
    assert np.array_equal(one.argmax, one.logits.argmax(-1))
    assert np.array_equal(one.top_ids[:, 0], one.argmax)


def compare(bundle, profile="cpu-fp32"):
    """In all ways that a draft runs: chunks, single tokens, forks, ragged batches, roll-back."""
    written, fast = (load_draft(bundle, profile, settings) for settings in (AS_WRITTEN, REWRITTEN))
    ids = np.random.default_rng(0).integers(3, 160, (3, 60)).tolist()
    for engine in (written, fast):
        assert [engine.open() for _ in ids] == [0, 1, 2]

    def step(*rows):
        both = (final_choices(engine, rows) for engine in (fast, written))
        for one, other in zip(*both, strict=True):
            close(one, other)

    step(Row(0, 0, ids[0][:1]))
    step(Row(0, 1, ids[0][1:33], 32))
    for place in range(33, 36):
        step(Row(0, place, [ids[0][place]]))
    for engine in (written, fast):
        engine.copy(0, 1, 0, 34)
    step(Row(0, 36, [7]), Row(1, 34, [9]))
    step(Row(0, 37, [8]), Row(1, 35, ids[1][:4], 4), Row(2, 0, ids[2][:11], 3))
    for engine in (written, fast):
        engine.truncate(0, 20)
    step(Row(0, 20, ids[0][20:22], 2), Row(2, 11, [ids[2][11]]))
    step(Row(0, 22, [ids[0][22]]), Row(1, 39, [5]), Row(2, 12, [ids[2][12]]))


@pytest.fixture
def draft(tmp_path):
    """Exports a random model of a family as the draft of a profile; returns the bundle."""

    def exported(family, profile="cpu-fp32"):
        make(tmp_path / "model", *FAMILIES[family])
        settings = ExportSettings(
            str(tmp_path / "model"), tmp_path / "bundle", force=True, drafts=((profile, "self"),)
        )
        return export(settings)

    return exported


@pytest.mark.parametrize("joined", [True, False])
@pytest.mark.parametrize(
    ("family", "sums"),
    [
        ("llama, one kv head, theta", 0),
        ("llama, biases everywhere", 4),
        ("qwen2, tied", 1),
        ("qwen3", 0),
    ],
)
def test_the_same_logits(draft, monkeypatch, family, sums, joined):
    """`sums`: biases of a layer, if its projections are joined."""
    if not joined:
        monkeypatch.setattr(WeightFolder, "joined", apart)
    bundle = draft(family)
    kinds = Counter(operators(rewritten(graph_file(bundle))))
    assert kinds["GroupQueryAttention"] == kinds["QuickGelu"] == 4
    assert kinds["SkipSimplifiedLayerNormalization"] == 8
    if joined:
        assert kinds["MatMul"] == 4 * 4
        assert kinds["Add"] == 4 * sums
        assert kinds["Split"] == (8 if "qwen3" in family else 4)
    gone = ("Attention", "TensorScatter", "RotaryEmbedding", "Transpose", "Swish", "ArgMax")
    assert not any(kinds[kind] for kind in gone)
    compare(bundle)


def test_a_trimmed_vocabulary(tiny_llama_folder, tmp_path):
    source, _ = trimmed_and_trained(tiny_llama_folder, tmp_path)
    compare(export(ExportSettings(
        str(tiny_llama_folder), tmp_path / "bundle", drafts=(("cpu-fp32", str(source)),)
    )))  # fmt: skip


def test_joined_products_have_the_same_bits(draft, monkeypatch):
    found = []
    for joined in (True, False):
        if not joined:
            monkeypatch.setattr(WeightFolder, "joined", apart)
        engine = load_draft(draft("llama, grouped", "cpu-int4"), "cpu-int4", AS_WRITTEN)
        (choices,) = final_choices(engine, [Row(engine.open(), 0, list(range(9, 40)), 31)])
        found.append(choices.logits)
    assert np.array_equal(*found)


def change_attention(model, **attributes):
    node = next(node for node in model.graph.node if node.op_type == "Attention")
    node.attribute.extend(onnx.helper.make_attribute(*item) for item in attributes.items())


def read_a_cache_twice(model):
    model.graph.node.append(onnx.helper.make_node("Identity", ["cache_key.2.out"], ["again"]))


@pytest.mark.parametrize(
    "change",
    [
        lambda model: change_attention(model, scale=0.5),
        lambda model: change_attention(model, softcap=10.0),
        read_a_cache_twice,
    ],
)
def test_another_form_is_left_alone(tiny_bundle, change):
    model = onnx.load_model_from_string(graph_file(tiny_bundle))
    assert rewritten(model.SerializeToString())
    change(model)
    assert rewritten(model.SerializeToString()) is None


def test_slots_beyond_the_rotary_tables_are_left_alone(tiny_bundle):
    """The context is 512, and the last capacity in use is the first that holds it."""
    file = graph_file(tiny_bundle)
    assert rewritten(file, (256, 512, 1024))
    assert rewritten(file, (256, 768)) is None
    assert rewritten(b"\x08\x0cnot a graph") is None


def test_an_onnx_runtime_that_refuses_the_rewrite_takes_the_file(tiny_bundle, monkeypatch, caplog):
    refused = rewritten(graph_file(tiny_bundle)).replace(b"QuickGelu", b"SlowGelu!")
    monkeypatch.setattr(session, "rewritten", lambda file, capacities: refused)
    with caplog.at_level("INFO"):
        engine = load_draft(tiny_bundle, "cpu-fp32", REWRITTEN)
    assert "as it is" in caplog.text
    (choices,) = final_choices(engine, [Row(engine.open(), 0, [5, 6, 7])])
    assert choices.finite


def test_a_draft_that_replays_and_a_target_are_never_rewritten(tiny_bundle, monkeypatch):
    monkeypatch.setattr(session, "rewritten", None)
    load_draft(tiny_bundle, "cpu-fp32", OrtSettings(min_tokens=2))
    load_target(tiny_bundle, OrtSettings(min_tokens=1))
