"""Writing a decoder as a Hugging Face folder: plain, or with matrices packed to int4 and int8.

Packed matrices have the format `pack-quantized` of compressed-tensors, which vLLM reads. Three
tensors replace `X.weight` [out, in]:

    X.weight_packed  int32 [out, in * bits / 32]   values + 2 ** (bits - 1), lowest bits first
    X.weight_scale   float16 [out, in / 32]
    X.weight_shape   int64 [2]                     out, in

A draft may share its target's embedding, output matrix and tokenizer. Its folder then lacks them,
and config.json has `"edgespec": {"shares_embedding_of": fingerprint of the tokenizer}`.
A folder is written under another name and renamed, so that a reader never sees an incomplete one.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from torch import Tensor

from calibration.decoder import Decoder
from edgespec import __version__
from edgespec.architecture import (
    ATTENTION_PROJECTIONS,
    FAMILIES,
    FEED_FORWARD_PROJECTIONS,
    FamilyTraits,
)
from edgespec.checkpoint import BLOCK_INPUTS, Blocks, TokenizerSource
from edgespec.errors import CheckpointError, UnsupportedModel, UsageError
from edgespec.publish import published
from edgespec.tokenizer import fingerprint

_LARGEST_FLOAT16 = 65504.0


def write_checkpoint(
    folder: Path,
    decoder: Decoder,
    source: TokenizerSource,
    extra: Mapping[str, Any] | None = None,
    *,
    shares_embedding: bool = False,
    kept_ids: npt.NDArray[np.int64] | None = None,
    blocks: Mapping[str, Blocks] | None = None,
) -> None:
    """Write `decoder` to `folder`, completely or not at all.

    `extra` goes into config.json under "edgespec". `kept_ids` [n], ascending, are the rows of the
    output matrix that a trimmed draft uses. Matrices named in `blocks` ("model.layers.0.…weight")
    are packed. All other tensors are stored as float16, or as bfloat16 if a weight is too large for
    float16.

    Raises:
        UsageError: `folder` exists already.
        CheckpointError: the disk refuses.
        UnsupportedModel: the Hugging Face class has no place for a bias of the decoder.
    """
    blocks = blocks or {}
    notes: dict[str, Any] = {"made_by": f"edgespec {__version__}", **(extra or {})}
    if shares_embedding:
        notes["shares_embedding_of"] = fingerprint(Tokenizer.from_str(source.json))
    tensors, biased = _tensors(decoder, blocks, shares_embedding)
    if kept_ids is not None:
        notes["vocabulary"] = len(kept_ids)
        tensors["edgespec.kept_ids"] = torch.from_numpy(np.asarray(kept_ids, np.int64))
    half = _dtype(tensors)
    tensors = {name: _stored(name, tensor, half) for name, tensor in tensors.items()}
    config = _config(decoder, source, biased, half)
    if blocks:
        config["quantization_config"] = _quantization(blocks)
    config["edgespec"] = notes
    with published(folder, refuse_to_replace, CheckpointError) as partial:
        save_file(tensors, partial / "model.safetensors", metadata={"format": "pt"})
        _write_json(partial / "config.json", config)
        if not shares_embedding:
            _write_tokenizer(partial, source)


def write_blocks(path: Path, blocks: Mapping[str, Blocks]) -> None:
    """Store the rounded matrices of unfinished work. Raises `CheckpointError`."""
    tensors = {
        f"{name}.{field}": torch.as_tensor(value)
        for name, one in blocks.items()
        for field, value in one._asdict().items()
    }
    partial = path.with_suffix(".partial")
    try:
        save_file(tensors, partial)
        partial.rename(path)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"writing {path} failed ({error})") from error


def read_blocks(path: Path) -> dict[str, Blocks] | None:
    """Return what `write_blocks` stored; None without a file. Raises `CheckpointError`."""
    if not path.is_file():
        return None
    try:
        tensors = load_file(path)
        names = [name.removesuffix(".bits") for name in tensors if name.endswith(".bits")]
        return {
            name: Blocks(
                tensors[f"{name}.values"].numpy(),
                tensors[f"{name}.scales"].numpy(),
                4 if int(tensors[f"{name}.bits"]) == 4 else 8,
            )
            for name in names
        }
    except (OSError, SafetensorError, KeyError) as error:
        raise CheckpointError(
            f"{path} cannot be read ({type(error).__name__}); remove it to round again"
        ) from error


def refuse_to_replace(folder: Path) -> None:
    """Raise `UsageError` for a `folder` with content, so that no work is overwritten."""
    if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
        raise UsageError(f"{folder} exists already; remove it or choose another place")


def pack(values: npt.NDArray[np.int8], bits: int) -> npt.NDArray[np.int32]:
    """Pack integers [out, in] to int32 [out, in * bits / 32], lowest bits first."""
    each = 32 // bits
    unsigned = (values.astype(np.int64) + 2 ** (bits - 1)).reshape(len(values), -1, each)
    words = (unsigned << (np.arange(each, dtype=np.int64) * bits)).sum(axis=2)
    return np.asarray(words.astype(np.uint32).view(np.int32), np.int32)


def _tensors(
    decoder: Decoder, blocks: Mapping[str, Blocks], shares_embedding: bool
) -> tuple[dict[str, Tensor], set[str]]:
    """Return the tensors to store, and the projections with a bias (some of them zeros)."""
    state = {name: tensor.detach().cpu() for name, tensor in decoder.state_dict().items()}
    if shares_embedding:
        state = {n: t for n, t in state.items() if "embed_tokens" not in n and "lm_head" not in n}
    biased = {name.split(".")[-2] for name in state if name.endswith(".bias")}
    needed = _biases(FAMILIES[decoder.architecture.family], biased)
    weights = [name for name in state if name.endswith(".weight")]
    for name in [name for name in weights if name.split(".")[-2] in needed]:
        bias = name.removesuffix("weight") + "bias"
        state.setdefault(bias, torch.zeros(len(state[name])))
    for name, one in blocks.items():
        matrix = name.removesuffix(".weight")
        del state[name]
        state[f"{matrix}.weight_packed"] = torch.from_numpy(pack(one.values, one.bits))
        state[f"{matrix}.weight_scale"] = torch.from_numpy(one.scales.astype(np.float16))
        state[f"{matrix}.weight_shape"] = torch.tensor(one.values.shape, dtype=torch.int64)
    return state, needed


def _biases(traits: FamilyTraits, biased: set[str]) -> set[str]:
    """Return the projections that have a bias in the family's class if those in `biased` have."""
    groups = (group for group in traits.bias_groups if group & biased)
    needed = set(traits.always_biased).union(*groups)
    if biased - needed:
        raise UnsupportedModel(
            f"the model has a bias at {min(biased - needed)}, for which the Hugging Face class "
            f"{traits.hugging_face_class} has no place"
        )
    return needed


def _dtype(tensors: Mapping[str, Tensor]) -> torch.dtype:
    floats = [tensor for tensor in tensors.values() if tensor.is_floating_point()]
    largest = max(float(tensor.abs().max()) for tensor in floats)
    return torch.float16 if largest <= _LARGEST_FLOAT16 else torch.bfloat16


def _stored(name: str, tensor: Tensor, half: torch.dtype) -> Tensor:
    keep = name.endswith(".weight_scale") or not tensor.is_floating_point()
    return (tensor if keep else tensor.to(half)).contiguous()


def _config(
    decoder: Decoder, source: TokenizerSource, biased: set[str], half: torch.dtype
) -> dict[str, Any]:
    a = decoder.architecture
    traits, rotary = FAMILIES[a.family], dict(decoder.rope.parameters)
    config: dict[str, Any] = {
        "architectures": [traits.hugging_face_class],
        "model_type": a.family,
        "vocab_size": a.vocabulary,
        "hidden_size": a.hidden,
        "intermediate_size": a.intermediate,
        "num_hidden_layers": a.layers,
        "num_attention_heads": a.heads,
        "num_key_value_heads": a.kv_heads,
        "head_dim": a.head_dim,
        "hidden_act": "silu",
        "rms_norm_eps": a.norm_epsilon,
        "max_position_embeddings": a.context,
        "tie_word_embeddings": a.tied,
        "attention_bias": bool(biased & ATTENTION_PROJECTIONS),
        "rope_theta": rotary["rope_theta"],
        "rope_parameters": rotary,
        "dtype": str(half).removeprefix("torch."),
    }
    if FEED_FORWARD_PROJECTIONS in traits.bias_groups:
        config["mlp_bias"] = bool(biased & FEED_FORWARD_PROJECTIONS)
    return config | _special_ids(source)


def _special_ids(source: TokenizerSource) -> dict[str, Any]:
    ids: dict[str, Any] = {}
    if source.bos is not None:
        ids["bos_token_id"] = Tokenizer.from_str(source.json).token_to_id(source.bos)
    if source.end_ids:
        ids["eos_token_id"] = list(source.end_ids)
    return ids


def _quantization(blocks: Mapping[str, Blocks]) -> dict[str, Any]:
    groups = {}
    for number, bits in enumerate(sorted({one.bits for one in blocks.values()})):
        groups[f"group_{number}"] = {
            "targets": sorted(
                name.removesuffix(".weight") for name, one in blocks.items() if one.bits == bits
            ),
            "weights": {
                "num_bits": bits,
                "type": "int",
                "symmetric": True,
                "strategy": "group",
                "group_size": BLOCK_INPUTS,
                "dynamic": False,
                "actorder": None,
            },
            "input_activations": None,
            "output_activations": None,
        }
    return {
        "quant_method": "compressed-tensors",
        "format": "pack-quantized",
        "quantization_status": "compressed",
        "config_groups": groups,
        "ignore": ["lm_head"],
    }


def _write_tokenizer(folder: Path, source: TokenizerSource) -> None:
    (folder / "tokenizer.json").write_text(source.json, encoding="utf-8")
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": source.bos,
        "eos_token": source.eos,
        "chat_template": source.chat_template,
    }
    _write_json(
        folder / "tokenizer_config.json", {k: v for k, v in settings.items() if v is not None}
    )
    _write_json(folder / "generation_config.json", _special_ids(source))


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
