"""The written graph against transformers, on random small models of each family."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import transformers
from tokenizers import Tokenizer, models

from edgespec.config import Request
from edgespec.errors import CheckpointError
from edgespec.manifest import SCHEMA, Bundle
from edgespec.sampling import Sampling
from engines.base import Row, final_choices
from engines.drafters.model import ModelDrafter
from engines.machine.profiles import precisions
from engines.onnxruntime_backend.engine import OrtSettings, load_draft, load_target
from export.bundle import ExportSettings, export

SHAPES = {
    "vocab_size": 160,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "max_position_embeddings": 512,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 500000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
YARN = {
    "rope_type": "yarn",
    "rope_theta": 10000.0,
    "factor": 4.0,
    "original_max_position_embeddings": 128,
}
FAMILIES = {
    "llama": ("llama", {}),
    "llama, tied": ("llama", {"tie_word_embeddings": True}),
    "llama, grouped": ("llama", {"num_key_value_heads": 2}),
    "llama, one kv head, theta": (
        "llama",
        {
            "num_key_value_heads": 1,
            "rope_parameters": {"rope_type": "default", "rope_theta": 100000.0},
        },
    ),
    "llama 3": ("llama", {"num_key_value_heads": 2, "rope_parameters": LLAMA3}),
    "llama, linear scaling": (
        "llama",
        {"rope_parameters": {"rope_type": "linear", "rope_theta": 10000.0, "factor": 4.0}},
    ),
    "llama, yarn": ("llama", {"rope_parameters": YARN}),
    "llama, biases everywhere": ("llama", {"attention_bias": True, "mlp_bias": True}),
    "mistral": ("mistral", {"sliding_window": None, "num_key_value_heads": 2}),
    "qwen2": ("qwen2", {"num_key_value_heads": 2}),
    "qwen2, tied": ("qwen2", {"num_key_value_heads": 2, "tie_word_embeddings": True}),
    "qwen3": ("qwen3", {"num_key_value_heads": 2, "head_dim": 32}),
    "qwen3, tied": (
        "qwen3",
        {"num_key_value_heads": 4, "head_dim": 16, "tie_word_embeddings": True},
    ),
}


def make(folder, kind, changes):
    """A random model in `folder`, with biases and norms that are not 0 and 1."""
    torch.manual_seed(0)
    config = transformers.AutoConfig.for_model(kind, **{**SHAPES, **changes})
    model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() == 1:
                parameter.add_(torch.randn_like(parameter) * 0.1)
            elif "embed" not in name:
                parameter.mul_(4)
    model.save_pretrained(folder)
    vocabulary = {f"<{number}>": number for number in range(160)}
    Tokenizer(models.WordLevel(vocabulary, unk_token="<0>")).save(str(folder / "tokenizer.json"))
    return model


def truth(model, ids):
    with torch.no_grad():
        return model(torch.tensor([ids])).logits[0].numpy()


def logits(engine, row):
    (choices,) = final_choices(engine, [row])
    return choices.logits


@pytest.mark.parametrize("family", FAMILIES)
def test_parity_with_transformers(tmp_path, family):
    source = tmp_path / "model"
    model = make(source, *FAMILIES[family])
    bundle = export(ExportSettings(str(source), tmp_path / "bundle", split=(1, 3)))
    engine = load_target(bundle, OrtSettings())
    generator = np.random.default_rng(0)
    texts = [generator.integers(3, 160, length).tolist() for length in (90, 47, 20)]
    expected = [truth(model, text) for text in texts]
    slots = [engine.open() for _ in texts]

    def close(actual, text, start):
        return np.abs(actual - expected[text][start : start + len(actual)]).max() <= 1e-4

    # prefill in chunks
    assert close(logits(engine, Row(slots[0], 0, texts[0][:33], 33)), 0, 0)
    assert close(logits(engine, Row(slots[0], 33, texts[0][33:40], 7)), 0, 33)
    # a ragged batch: several new tokens on a past, a fresh prompt, one token
    final_choices(engine, [Row(slots[2], 0, texts[2][:9], 0)])
    batch = [
        Row(slots[0], 40, texts[0][40:45], 5),
        Row(slots[1], 0, texts[1][:12], 12),
        Row(slots[2], 9, texts[2][9:10], 1),
    ]
    for number, choices in enumerate(final_choices(engine, batch)):
        assert close(choices.logits, number, batch[number].start)
        assert choices.argmax.tolist() == choices.logits.argmax(-1).tolist()
        best = np.sort(choices.logits, axis=-1)[:, ::-1][:, :64]
        assert np.array_equal(choices.top_logits, best)
    # rejected drafts, then the right text over them
    final_choices(engine, [Row(slots[0], 45, [7, 8, 9, 10, 11, 12, 13])])
    engine.truncate(slots[0], 46)
    assert close(logits(engine, Row(slots[0], 45, texts[0][45:], 45)), 0, 45)


def test_exit_heads_are_the_norm_and_the_head_at_their_layer(tmp_path):
    model = make(tmp_path / "model", *FAMILIES["llama, grouped"])
    bundle = export(ExportSettings(str(tmp_path / "model"), tmp_path / "bundle", split=(1, 3)))
    engine = load_target(bundle, OrtSettings())
    ids = list(range(10, 30))
    with torch.no_grad():
        hidden = model(torch.tensor([ids]), output_hidden_states=True).hidden_states
        expected = {
            layer: model.lm_head(model.model.norm(hidden[layer]))[0, -4:].numpy()
            for layer in (1, 3)
        }
    steps = list(engine.run([Row(engine.open(), 0, ids, 4, hints=True)]))
    assert [(step.layer, step.final) for step in steps] == [(1, False), (3, False), (4, True)]
    for step in steps[:2]:
        assert np.abs(step.choices[0].logits - expected[step.layer]).max() <= 1e-4
    silent = list(engine.run([Row(engine.open(), 0, ids, 4)]))
    assert [step.choices[0] is None for step in silent] == [True, True, False]


@pytest.mark.parametrize(
    ("precision", "most"), [("fp32", 1e-6), ("fp16", 0.005), ("int8", 0.05), ("int4", 0.4)]
)
def test_precisions_stay_near_the_model(tmp_path, precision, most):
    model = make(tmp_path / "model", *FAMILIES["llama, tied"])
    settings = ExportSettings(
        str(tmp_path / "model"), tmp_path / "bundle", precisions=precisions(precision)
    )
    engine = load_target(export(settings), OrtSettings())
    ids = np.random.default_rng(0).integers(3, 160, 100).tolist()
    actual, expected = logits(engine, Row(engine.open(), 0, ids, 100)), truth(model, ids)
    error = np.sqrt(((actual - expected) ** 2).mean() / (expected**2).mean())
    assert error <= most


def test_graphs_are_standard_onnx_and_tied_weights_are_stored_once(tmp_path):
    import onnx

    make(tmp_path / "model", *FAMILIES["qwen3, tied"])
    bundle = export(
        ExportSettings(
            str(tmp_path / "model"),
            tmp_path / "bundle",
            segments=2,
            drafts=(("cpu-int4", "self"), ("cpu-fp32", "self")),
        )
    )
    graphs = sorted(bundle.folder.rglob("*.onnx"))
    assert len(graphs) == 2 + 1 + 1 + 2
    for path in graphs:
        model = onnx.load(path, load_external_data=False)
        onnx.checker.check_model(str(path))
        assert [(o.domain, o.version) for o in model.opset_import] == [("", 24)]
        assert model.ir_version == 12
        assert {node.domain for node in model.graph.node} <= {"", "ai.onnx"}
    assert not (bundle.folder / "target/head.data").exists()
    embedding = 160 * 64 * 4
    assert bundle.manifest.files["target/embedding.data"].size == embedding


def test_a_draft_is_one_graph_that_agrees_with_its_target(tmp_path):
    make(tmp_path / "model", *FAMILIES["qwen2"])
    bundle = export(
        ExportSettings(str(tmp_path / "model"), tmp_path / "bundle", drafts=(("cpu-fp32", "self"),))
    )
    ids = list(range(3, 43))
    results = []
    for engine in (
        load_target(bundle, OrtSettings()),
        load_draft(bundle, "cpu-fp32", OrtSettings(min_tokens=1)),
    ):
        slot = engine.open()
        final_choices(engine, [Row(slot, 0, ids[:-1], 0)])
        results.append(logits(engine, Row(slot, 39, ids[-1:])))
    assert np.abs(results[0] - results[1]).max() <= 1e-4


def test_a_draft_whose_vocabulary_is_padded_differently(tmp_path, house):
    """Accepted at export; ids that only one of the two has never reach the other."""
    kind, changes = FAMILIES["llama, grouped"]
    make(tmp_path / "target", kind, changes)
    for size in (176, 200):
        make(tmp_path / f"draft{size}", kind, {**changes, "vocab_size": size})
        bundle = export(
            ExportSettings(
                str(tmp_path / "target"),
                tmp_path / f"bundle{size}",
                drafts=(("cpu-fp32", str(tmp_path / f"draft{size}")),),
            )
        )
        draft = load_draft(bundle, "cpu-fp32", OrtSettings(min_tokens=1))
        assert draft.vocabulary == size
        home = house(load_target(bundle, OrtSettings()))
        request = Request((5, 6, 7), 40, Sampling(1.0, seed=size))
        answer = home.answer(ModelDrafter(draft, "padded"), request)
        assert answer.stats.token_ids == home.alone(request)


@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8", "int4"])
def test_weights_that_are_not_finite_are_named(tmp_path, precision):
    model = make(tmp_path / "model", *FAMILIES["llama"])
    weight = model.model.layers[2].mlp.up_proj.weight
    with torch.no_grad():
        weight[3, 4] = 1e6 if precision == "fp16" else torch.nan
    model.save_pretrained(tmp_path / "model")
    settings = ExportSettings(
        str(tmp_path / "model"), tmp_path / "bundle", precisions=precisions(precision)
    )
    with pytest.raises(CheckpointError, match=r"layers\.2\.mlp\.up_proj\.weight .* not finite"):
        export(settings)
    assert not (tmp_path / "bundle").exists()


def test_a_bundle_of_another_schema_and_a_flipped_byte_are_named(tmp_path):
    from edgespec.errors import BundleError

    make(tmp_path / "model", *FAMILIES["llama"])
    bundle = export(ExportSettings(str(tmp_path / "model"), tmp_path / "bundle", segments=2))
    for name in bundle.manifest.files:
        path = bundle.path(name)
        whole = path.read_bytes()
        flipped = bytearray(whole)
        flipped[len(flipped) // 2] ^= 1
        path.write_bytes(flipped)
        with pytest.raises(BundleError, match=f"{path} is damaged"):
            bundle.check()
        path.write_bytes(whole)
    bundle.check()
    manifest = bundle.path("manifest.json")
    manifest.write_text(manifest.read_text().replace(f'"schema": {SCHEMA}', '"schema": 99'))
    with pytest.raises(BundleError, match="schema 99"):
        Bundle.open(bundle.folder)
