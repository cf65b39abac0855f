"""The models that the graph can express: strict reading of a config, and the tensors it needs."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

from edgespec.architecture import FAMILIES, LARGEST_SIZE, Architecture, Family
from edgespec.errors import CheckpointError, UnsupportedModel

_FAMILY_OF: Mapping[str, Family] = {
    model_type: family for family, traits in FAMILIES.items() for model_type in traits.model_types
}
_SUPPORTED = "dense Llama, Mistral, Qwen2 and Qwen3 models with full attention are supported"
_EXPERTS = ("num_local_experts", "num_experts", "n_routed_experts", "moe_num_experts")
_IGNORED = ("rotary_emb.inv_freq",)
"""Endings of tensors in old checkpoints that follow from the config."""


def unsupported(what: str) -> UnsupportedModel:
    """Return the error for a model that the graph has no nodes for."""
    return UnsupportedModel(f"this model {what}, for which there is no graph; {_SUPPORTED}")


def architecture_from_config(config: Mapping[str, Any]) -> Architecture:
    """Read the decoder that a `config.json` declares, with the defaults of transformers' classes.

    Raises:
        UnsupportedModel: the graph has no nodes for a part of the model.
        CheckpointError: a number is missing or impossible.
    """
    _refuse(config)
    model_type = config["model_type"]
    family = _FAMILY_OF[model_type]
    traits = FAMILIES[family]
    heads, hidden = _count(config, "num_attention_heads"), _count(config, "hidden_size")
    head_dim = config.get("head_dim")
    if head_dim is None:
        head_dim = traits.default_head_dim
    if head_dim is None and hidden % heads:
        raise CheckpointError(
            f"the config has hidden_size {hidden}, which {heads} heads do not divide, "
            "and no head_dim"
        )
    kv_heads = config.get("num_key_value_heads")
    if kv_heads is None and model_type != "llama" and "num_key_value_heads" not in config:
        raise CheckpointError("the config does not say num_key_value_heads")
    return Architecture(
        family=family,
        vocabulary=_count(config, "vocab_size"),
        hidden=hidden,
        layers=_count(config, "num_hidden_layers"),
        heads=heads,
        kv_heads=heads if kv_heads is None else _divisor(config, "num_key_value_heads", heads),
        head_dim=hidden // heads
        if head_dim is None
        else _count({"head_dim": head_dim}, "head_dim"),
        intermediate=_count(config, "intermediate_size"),
        norm_epsilon=_positive(config, "rms_norm_eps", 1e-6),
        context=min(_count(config, "max_position_embeddings"), LARGEST_SIZE),
        tied=bool(config.get("tie_word_embeddings", False)),
        qk_norm=traits.qk_norm,
    )


def tensor_shapes(a: Architecture) -> Iterator[tuple[str, tuple[int, ...], bool]]:
    """Yield every possible tensor: Hugging Face name, shape, and if it is required."""
    queries, keys = a.heads * a.head_dim, a.kv_heads * a.head_dim
    projections = {
        "self_attn.q_proj": (queries, a.hidden),
        "self_attn.k_proj": (keys, a.hidden),
        "self_attn.v_proj": (keys, a.hidden),
        "self_attn.o_proj": (a.hidden, queries),
        "mlp.gate_proj": (a.intermediate, a.hidden),
        "mlp.up_proj": (a.intermediate, a.hidden),
        "mlp.down_proj": (a.hidden, a.intermediate),
    }
    yield "model.embed_tokens.weight", (a.vocabulary, a.hidden), True
    for layer in range(a.layers):
        prefix = f"model.layers.{layer}."
        yield prefix + "input_layernorm.weight", (a.hidden,), True
        yield prefix + "post_attention_layernorm.weight", (a.hidden,), True
        if a.qk_norm:
            yield prefix + "self_attn.q_norm.weight", (a.head_dim,), True
            yield prefix + "self_attn.k_norm.weight", (a.head_dim,), True
        for name, shape in projections.items():
            yield f"{prefix}{name}.weight", shape, True
            yield f"{prefix}{name}.bias", shape[:1], False
    yield "model.norm.weight", (a.hidden,), True
    yield "lm_head.weight", (a.vocabulary, a.hidden), not a.tied


def check_tensors(
    architecture: Architecture, shapes: Mapping[str, tuple[int, ...]], where: str
) -> tuple[str, ...]:
    """Compare the present tensors with the required ones. Return the names of those to use.

    Raises `CheckpointError` for a missing tensor or another shape, and `UnsupportedModel` for an
    unknown tensor. `where` is the place in messages.
    """
    used: list[str] = []
    for name, shape, needed in tensor_shapes(architecture):
        if name in shapes and shapes[name] != shape:
            raise CheckpointError(
                f"{where}: tensor {name} has shape {list(shapes[name])} where the config "
                f"calls for {list(shape)}; config and weights do not belong together"
            )
        if name in shapes:
            used.append(name)
        elif needed:
            hint = " while the embedding is not tied" if name == "lm_head.weight" else ""
            raise CheckpointError(
                f"{where}: tensor {name} is missing{hint}; "
                "complete the download, or convert the model again"
            )
    extra = sorted(n for n in shapes.keys() - set(used) if not n.endswith(_IGNORED))
    if extra:
        raise unsupported(f"has the tensor {extra[0]}")
    return tuple(used)


def _refuse(config: Mapping[str, Any]) -> None:
    """Raise `UnsupportedModel` for the first part that the graph has no nodes for."""
    model_type, layer_types = str(config.get("model_type")), config.get("layer_types")
    listed = layer_types if isinstance(layer_types, list) else []
    kinds = {str(kind) for kind in listed} - {"full_attention"}
    if any(config.get(key) for key in _EXPERTS) or "moe" in model_type:
        raise unsupported("is a mixture of experts")
    if "vision_config" in config or "text_config" in config:
        raise unsupported("has a vision or audio tower")
    if "sliding_attention" in kinds or _slides(config):
        raise unsupported("attends through a sliding window")
    if kinds:
        raise unsupported(f"has layers of kind {', '.join(sorted(kinds))}")
    if model_type not in _FAMILY_OF:
        raise unsupported(f"is of type {model_type!r}")
    if config.get("hidden_act", "silu") != "silu":
        raise unsupported(f"has the activation {config['hidden_act']!r}")


def _slides(config: Mapping[str, Any]) -> bool:
    if config.get("model_type") == "mistral":
        return config.get("sliding_window", 4096) is not None
    return bool(config.get("use_sliding_window"))


def _count(config: Mapping[str, Any], key: str) -> int:
    value = config.get(key)
    if isinstance(value, bool) or not isinstance(value, int) or value <= 0:
        raise CheckpointError(f"the config needs {key} as a positive whole number, not {value!r}")
    return value


def _positive(config: Mapping[str, Any], key: str, default: float) -> float:
    value = config.get(key, default)
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
        raise CheckpointError(f"the config needs {key} as a positive number, not {value!r}")
    return float(value)


def _divisor(config: Mapping[str, Any], key: str, of: int) -> int:
    value = _count(config, key)
    if of % value:
        raise CheckpointError(f"the config has {of} heads, which {key} {value} does not divide")
    return value
