"""Checkpoints with the shapes of known models and random weights, to measure memory and time.

They are written in small blocks, so that the writing process stays small.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer, models

from edgespec.progress import Advance

_LLAMA: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "hidden_act": "silu",
    "tie_word_embeddings": False,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "torch_dtype": "float16",
}
MODELS: dict[str, dict[str, Any]] = {
    "1b": {  # TinyLlama-1.1B
        **_LLAMA,
        "hidden_size": 2048,
        "intermediate_size": 5632,
        "num_hidden_layers": 22,
        "num_attention_heads": 32,
        "num_key_value_heads": 4,
        "vocab_size": 32000,
        "max_position_embeddings": 2048,
    },
    "llama-3.2-1b": {  # without its rope scaling
        **_LLAMA,
        "hidden_size": 2048,
        "intermediate_size": 8192,
        "num_hidden_layers": 16,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "vocab_size": 128256,
        "max_position_embeddings": 8192,
        "rope_theta": 500000.0,
        "tie_word_embeddings": True,
    },
    "qwen3-0.6b": {
        **_LLAMA,
        "architectures": ["Qwen3ForCausalLM"],
        "model_type": "qwen3",
        "hidden_size": 1024,
        "head_dim": 128,
        "intermediate_size": 3072,
        "num_hidden_layers": 28,
        "num_attention_heads": 16,
        "num_key_value_heads": 8,
        "vocab_size": 151936,
        "max_position_embeddings": 40960,
        "rms_norm_eps": 1e-6,
        "rope_theta": 1000000.0,
        "tie_word_embeddings": True,
    },
    "3b": {  # Llama-3.2-3B, without its rope scaling
        **_LLAMA,
        "hidden_size": 3072,
        "intermediate_size": 8192,
        "num_hidden_layers": 28,
        "num_attention_heads": 24,
        "num_key_value_heads": 8,
        "vocab_size": 128256,
        "max_position_embeddings": 8192,
        "tie_word_embeddings": True,
    },
    "7b": {  # Llama-2-7B
        **_LLAMA,
        "hidden_size": 4096,
        "intermediate_size": 11008,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 32,
        "vocab_size": 32000,
        "max_position_embeddings": 4096,
    },
}
"""`config.json` of each, with the shapes of the model."""
_SHARD_LAYERS = 8
_BLOCK_NUMBERS = 1 << 21
"""Numbers that are written at a time."""

Shapes = dict[str, tuple[int, ...]]


def layer_shapes(config: dict[str, Any]) -> Shapes:
    """One layer's tensors, without the layer's prefix and without `.weight`."""
    hidden, inner = config["hidden_size"], config["intermediate_size"]
    heads, kv_heads = config["num_attention_heads"], config["num_key_value_heads"]
    head_dim = config.get("head_dim", hidden // heads)
    queries, keys = heads * head_dim, kv_heads * head_dim
    norms = ("self_attn.q_norm", "self_attn.k_norm") if config["model_type"] == "qwen3" else ()
    return {
        "self_attn.q_proj": (queries, hidden),
        "self_attn.k_proj": (keys, hidden),
        "self_attn.v_proj": (keys, hidden),
        "self_attn.o_proj": (hidden, queries),
        **dict.fromkeys(norms, (head_dim,)),
        "mlp.gate_proj": (inner, hidden),
        "mlp.up_proj": (inner, hidden),
        "mlp.down_proj": (hidden, inner),
        "input_layernorm": (hidden,),
        "post_attention_layernorm": (hidden,),
    }


def shards(config: dict[str, Any]) -> list[Shapes]:
    """Tensor shapes, file by file: embedding and head, then a few layers in each."""
    table = (config["vocab_size"], config["hidden_size"])
    ends: Shapes = {
        "model.embed_tokens.weight": table,
        "model.norm.weight": (config["hidden_size"],),
    }
    if not config["tie_word_embeddings"]:
        ends["lm_head.weight"] = table
    layers = range(config["num_hidden_layers"])
    return [ends] + [
        {
            f"model.layers.{number}.{name}.weight": shape
            for number in layers[start : start + _SHARD_LAYERS]
            for name, shape in layer_shapes(config).items()
        }
        for start in layers[::_SHARD_LAYERS]
    ]


def nbytes(shapes: Shapes) -> int:
    """Bytes of the tensors in fp16."""
    return sum(2 * math.prod(shape) for shape in shapes.values())


def write_checkpoint(folder: Path, config: dict[str, Any], advance: Advance) -> None:
    """Write a checkpoint folder in the form of transformers, in fp16.

    Its tokenizer has four words. `advance` is called with the bytes written.
    """
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    vocabulary = {"<unk>": 0, "<s>": 1, "</s>": 2, "a": 3}
    Tokenizer(models.BPE(vocab=vocabulary, merges=[])).save(str(folder / "tokenizer.json"))
    generator = np.random.default_rng(0)
    where: dict[str, str] = {}
    files: Sequence[Shapes] = shards(config)
    for number, shapes in enumerate(files, start=1):
        name = f"model-{number:05}-of-{len(files):05}.safetensors"
        _write_shard(folder / name, shapes, generator, advance)
        where |= dict.fromkeys(shapes, name)
    index = {"metadata": {}, "weight_map": where}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def _write_shard(
    path: Path, shapes: Shapes, generator: np.random.Generator, advance: Advance
) -> None:
    """Write a safetensors file: length of the header, header, then the tensors in a row."""
    header, offset = {}, 0
    for name, shape in shapes.items():
        end = offset + 2 * math.prod(shape)
        header[name] = {"dtype": "F16", "shape": shape, "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(header).encode()
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for block in _random(offset // 2, generator):
            file.write(block)
            advance(len(block))


def _random(numbers: int, generator: np.random.Generator) -> Iterator[bytes]:
    """fp16 numbers between -0.03 and 0.03, little-endian."""
    for start in range(0, numbers, _BLOCK_NUMBERS):
        block = generator.random(min(_BLOCK_NUMBERS, numbers - start), np.float32)
        yield ((block - np.float32(0.5)) * np.float32(0.06)).astype("<f2").tobytes()
