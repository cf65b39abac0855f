"""Decoders as Hugging Face folders: the oracle is transformers, and `export` reads them back."""

import json

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer

from calibration.decoder import load
from calibration.quantisation.packed import pack, write_checkpoint
from edgespec.checkpoint import Blocks
from edgespec.errors import CheckpointError, UsageError
from edgespec.tokenizer import fingerprint
from export.sources.open import open_checkpoint

SHAPES = {
    "vocab_size": 300,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "initializer_range": 0.2,
}
ROPES = {
    "default": {"rope_type": "default", "rope_theta": 500000.0},
    "linear": {"rope_type": "linear", "rope_theta": 10000.0, "factor": 4.0},
    "llama3": {
        "rope_type": "llama3",
        "rope_theta": 500000.0,
        "factor": 32.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    },
    "yarn": {
        "rope_type": "yarn",
        "rope_theta": 1000000.0,
        "factor": 4.0,
        "original_max_position_embeddings": 32768,
    },
}


def saved(name, folder, tokenizer_folder, **changes):
    """A random model of the class `name`, as transformers saves it, with biases that count."""
    import transformers

    torch.manual_seed(1)
    config = getattr(transformers, f"{name}Config")(**{**SHAPES, **changes})
    model = getattr(transformers, f"{name}ForCausalLM")(config)
    for parameter_name, parameter in model.named_parameters():
        if parameter_name.endswith(("bias", "norm.weight")):
            torch.nn.init.normal_(parameter, 0.5, 0.2)
    model.save_pretrained(folder)
    for file in ("tokenizer.json", "tokenizer_config.json"):
        (folder / file).write_text((tokenizer_folder / file).read_text())
    return open_checkpoint(str(folder))


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("Llama", {"tie_word_embeddings": True}),
        ("Llama", {"attention_bias": True, "mlp_bias": True, "head_dim": 32}),
        ("Qwen2", {}),
        ("Qwen3", {"head_dim": 32, "rope_parameters": {**ROPES["default"]}}),
    ],
)
def test_transformers_and_export_read_what_the_decoder_is(
    name, changes, tmp_path, tiny_llama_folder
):
    import transformers

    checkpoint = saved(name, tmp_path / "source", tiny_llama_folder, **changes)
    decoder = load(checkpoint).requires_grad_(False)
    for parameter in decoder.parameters():
        parameter.copy_(parameter.half().float())
    write_checkpoint(tmp_path / "out", decoder, checkpoint.tokenizer, {"note": 1})

    ids = torch.randint(300, (2, 40), generator=torch.Generator().manual_seed(0))
    expected = decoder.logits(decoder.features(ids))
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.float32)
    assert type(model).__name__ == f"{name}ForCausalLM"
    torch.testing.assert_close(model(ids).logits, expected, rtol=1e-4, atol=1e-4)

    again = open_checkpoint(str(tmp_path / "out"))
    assert again.architecture == checkpoint.architecture
    assert again.tokenizer == checkpoint.tokenizer
    reloaded = load(again)
    torch.testing.assert_close(reloaded.logits(reloaded.features(ids)), expected)
    assert again.tensor("model.norm.weight").dtype == np.float16


def test_the_tokenizer_s_other_files_survive(tmp_path, tiny_llama_folder):
    import dataclasses

    import transformers

    checkpoint = open_checkpoint(str(tiny_llama_folder))
    source = dataclasses.replace(
        checkpoint.tokenizer, chat_template="{{ messages[0].content }}!", end_ids=(1, 7)
    )
    write_checkpoint(tmp_path / "out", load(checkpoint), source)
    assert open_checkpoint(str(tmp_path / "out")).tokenizer == source
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    assert tokenizer.apply_chat_template([{"role": "user", "content": "hi"}], tokenize=False) == (
        "hi!"
    )
    generation = transformers.GenerationConfig.from_pretrained(tmp_path / "out")
    assert generation.eos_token_id == [1, 7] and generation.bos_token_id == 0


@pytest.mark.parametrize("kind", ROPES)
@pytest.mark.parametrize("head_dim", [64, 128])
def test_rope_parameters_reproduce_the_frequencies(kind, head_dim, tmp_path, tiny_llama_folder):
    changes = {
        "rope_parameters": dict(ROPES[kind]),
        "head_dim": head_dim,
        "max_position_embeddings": 131072,
    }
    checkpoint = saved("Llama", tmp_path / "source", tiny_llama_folder, **changes)
    write_checkpoint(tmp_path / "out", load(checkpoint), checkpoint.tokenizer)
    assert (
        json.loads((tmp_path / "out" / "config.json").read_text())["rope_parameters"]
        == (ROPES[kind])
    )
    again = open_checkpoint(str(tmp_path / "out")).rope
    np.testing.assert_array_equal(again.inverse_frequencies, checkpoint.rope.inverse_frequencies)
    assert again.attention_factor == checkpoint.rope.attention_factor
    assert again.parameters == checkpoint.rope.parameters


def test_a_weight_too_large_for_float16_makes_it_bfloat16(tmp_path, tiny_llama_folder):
    checkpoint = open_checkpoint(str(tiny_llama_folder))
    decoder = load(checkpoint)
    with torch.no_grad():
        decoder.model.norm.weight[3] = 131072.0
    write_checkpoint(tmp_path / "out", decoder, checkpoint.tokenizer)
    weight = open_checkpoint(str(tmp_path / "out")).tensor("model.norm.weight")
    assert weight.dtype.name == "bfloat16" and float(weight[3]) == 131072.0


def test_packing_puts_the_lowest_bits_first():
    values = np.arange(-8, 8, dtype=np.int8).reshape(1, 16)
    assert pack(values, 4).tolist() == [[0x76543210, 0xFEDCBA98 - 2**32]]
    assert pack(np.array([[-128, -127, 0, 127]], np.int8), 8).tolist() == [[0xFF800100 - 2**32]]


def blocks_of(decoder, name, bits):
    weight = decoder.state_dict()[name].numpy()
    groups = weight.reshape(len(weight), -1, 32)
    scales = (np.abs(groups).max(2) / (2 ** (bits - 1) - 1)).astype(np.float16).astype(np.float32)
    values = np.rint(groups / scales[..., None]).astype(np.int8).reshape(weight.shape)
    return Blocks(values, scales, bits)


def test_a_packed_draft_without_its_target_s_embedding(tmp_path, tiny_llama_folder):
    from safetensors.numpy import load_file

    checkpoint = open_checkpoint(str(tiny_llama_folder))
    decoder = load(checkpoint).requires_grad_(False)
    names = {"model.layers.0.mlp.down_proj.weight": 8, "model.layers.1.self_attn.q_proj.weight": 4}
    blocks = {name: blocks_of(decoder, name, bits) for name, bits in names.items()}
    kept = np.array([0, 1, 5, 299])
    write_checkpoint(
        tmp_path / "out",
        decoder,
        checkpoint.tokenizer,
        {"agreement": 0.5},
        blocks=blocks,
        shares_embedding=True,
        kept_ids=kept,
    )
    stored = load_file(tmp_path / "out" / "model.safetensors")
    for name, one in blocks.items():
        assert name not in stored
        packed, bits = stored[f"{name}_packed"].view(np.uint32), one.bits
        values = np.stack([packed >> (bits * i) for i in range(32 // bits)], 2) & (2**bits - 1)
        values = values.astype(np.int64).reshape(one.values.shape) - 2 ** (bits - 1)
        np.testing.assert_array_equal(values, one.values)
        assert stored[f"{name}_scale"].dtype == np.float16
        np.testing.assert_array_equal(stored[f"{name}_scale"], one.scales)
        assert stored[f"{name}_shape"].tolist() == list(one.values.shape)
    assert not any("embed_tokens" in name or "lm_head" in name for name in stored)
    assert stored["edgespec.kept_ids"].tolist() == kept.tolist()
    assert not (tmp_path / "out" / "tokenizer.json").exists()
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    mark = fingerprint(Tokenizer.from_str(checkpoint.tokenizer.json))
    ours = config["edgespec"]
    assert ours["shares_embedding_of"] == mark
    assert ours["agreement"] == 0.5 and ours["vocabulary"] == 4
    groups = config["quantization_config"]["config_groups"].values()
    assert {group["weights"]["num_bits"]: group["targets"] for group in groups} == {
        4: ["model.layers.1.self_attn.q_proj"],
        8: ["model.layers.0.mlp.down_proj"],
    }


def test_what_is_there_is_never_replaced(tmp_path, tiny_llama_folder):
    checkpoint = open_checkpoint(str(tiny_llama_folder))
    decoder, out = load(checkpoint), tmp_path / "out"
    write_checkpoint(out, decoder, checkpoint.tokenizer, {"step": 1})
    with pytest.raises(UsageError, match="exists already"):
        write_checkpoint(out, decoder, checkpoint.tokenizer, {"step": 2})
    assert json.loads((out / "config.json").read_text())["edgespec"]["step"] == 1
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_failed_write_leaves_nothing(tmp_path, tiny_llama_folder, monkeypatch):
    checkpoint = open_checkpoint(str(tiny_llama_folder))

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("calibration.quantisation.packed.save_file", full)
    with pytest.raises(CheckpointError, match="No space left"):
        write_checkpoint(tmp_path / "out", load(checkpoint), checkpoint.tokenizer)
    assert list(tmp_path.iterdir()) == []


def test_a_checkpoint_caught_between_renames_comes_back(tmp_path, tiny_llama_folder):
    checkpoint = open_checkpoint(str(tiny_llama_folder))
    decoder, out = load(checkpoint), tmp_path / "out"
    write_checkpoint(out, decoder, checkpoint.tokenizer, {"step": 1})
    out.rename(tmp_path / ".out.999999999.abcd.old")
    (tmp_path / ".out.999999999.abcd.partial").mkdir()
    with pytest.raises(UsageError, match="exists already"):
        write_checkpoint(out, decoder, checkpoint.tokenizer)
    assert json.loads((out / "config.json").read_text())["edgespec"]["step"] == 1
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
