"""A GGUF file (llama.cpp's format) as a checkpoint with Hugging Face names and layout.

llama.cpp's converter changes the order of the query and key rows of Llama models: the two
dimensions that rotate together are adjacent, not half a head apart. The reader restores the order.
The tensor `rope_freqs.weight` holds Llama 3's frequency factors. The metadata is read through a
mapping that is closed again. Weights are read by offset, so that no page of them stays resident.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gguf
import ml_dtypes
import numpy as np
import numpy.typing as npt
from gguf import GGMLQuantizationType as Kind

from edgespec.architecture import FAMILIES
from edgespec.checkpoint import Blocks
from edgespec.errors import CheckpointError, UnsupportedModel
from export.sources.families import architecture_from_config, check_tensors, unsupported
from export.sources.gguf_tokenizer import tokenizer_from_gguf
from export.sources.json_file import located
from export.sources.rope import rope_from_config
from export.sources.tokenizer import check_embedding

_KEYS = {
    "hidden_size": "embedding_length",
    "num_hidden_layers": "block_count",
    "num_attention_heads": "attention.head_count",
    "intermediate_size": "feed_forward_length",
    "max_position_embeddings": "context_length",
}
"""Keys of a Hugging Face config, and the metadata that holds their values."""
_NAMES = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "output": "lm_head",
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
"""Stored names of tensors, and their Hugging Face names."""
_STORED_NAME = re.compile(r"(?:blk\.(\d+)\.)?(\w+)\.(weight|bias)")
_PLAIN: Mapping[Kind, npt.DTypeLike] = {
    Kind.F32: np.float32,
    Kind.F16: np.float16,
    Kind.BF16: ml_dtypes.bfloat16,
}
_BLOCKS = ("Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K")
_FREQUENCY_FACTORS = "rope_freqs.weight"


@dataclass(frozen=True)
class _GgufTensor:
    """A tensor in the file: `nbytes` bytes from `offset`, each row an integral number of blocks."""

    kind: Kind
    shape: tuple[int, ...]
    offset: int
    nbytes: int


class GgufCheckpoint:
    """One GGUF file, checked to be supported and complete."""

    revision = ""
    kept_ids: npt.NDArray[np.int64] | None = None

    def __init__(self, path: Path) -> None:
        self.name = path.name
        self._path = path
        metadata, tensors = _read_file(path)
        self._stored = {_hugging_face_name(name): one for name, one in tensors.items()}
        factors = self._stored.pop(_FREQUENCY_FACTORS, None)
        with located(path):
            config = _config(metadata, tensors)
            if factors is not None:
                config["rope_parameters"] = _with_factors(config, self._dequantised(factors))
            self.architecture = architecture_from_config(config)
            self.rope = rope_from_config(config, self.architecture.head_dim)
            self.tokenizer = tokenizer_from_gguf(metadata)
            check_embedding(
                self.tokenizer, self.architecture.vocabulary, "tensor token_embd.weight"
            )
        self._permuted = metadata["general.architecture"] == "llama"
        shapes = {name: one.shape for name, one in self._stored.items()}
        self._names = check_tensors(self.architecture, shapes, str(path))
        self._check_kinds()

    def names(self) -> Collection[str]:
        return self._names

    def shape(self, name: str) -> tuple[int, ...]:
        return self._stored[name].shape

    def nbytes(self, name: str) -> int:
        return self._stored[name].nbytes

    def tensor(self, name: str) -> npt.NDArray[Any]:
        return self._dequantised(self._stored[name], self._row_order(name))

    def bits(self, name: str) -> int | None:  # noqa: ARG002
        return None

    def blocks(self, name: str) -> Blocks | None:  # noqa: ARG002
        return None

    def kind(self, name: str) -> Kind:
        return self._stored[name].kind

    def stored_rows(self, name: str) -> npt.NDArray[np.uint8]:
        """Read a tensor as it is in the file, a row of bytes for each output, in stored order."""
        return self._raw(self._stored[name])

    def rows(self, name: str, start: int, stop: int) -> npt.NDArray[Any]:
        stored = self._stored[name]
        start, stop, _ = slice(start, stop).indices(stored.shape[0])
        stop = max(start, stop)
        order = self._row_order(name)
        first, last = start, stop
        if order is not None:  # rows are permuted within a head
            first = start // self.architecture.head_dim * self.architecture.head_dim
            last = -(-stop // self.architecture.head_dim) * self.architecture.head_dim
            order = order[start:stop] - first
        row_bytes = stored.nbytes // stored.shape[0]
        part = _GgufTensor(
            stored.kind,
            (last - first, *stored.shape[1:]),
            stored.offset + first * row_bytes,
            (last - first) * row_bytes,
        )
        return self._dequantised(part, order)

    def _row_order(self, name: str) -> npt.NDArray[np.intp] | None:
        """Return the stored row of each Hugging Face row; None if both orders are the same."""
        if not self._permuted or not re.search(r"\.self_attn\.[qk]_proj\.", name):
            return None
        return rotary_order(self.shape(name)[0], self.architecture.head_dim)

    def _dequantised(
        self, stored: _GgufTensor, order: npt.NDArray[np.intp] | None = None
    ) -> npt.NDArray[Any]:
        """Read the tensor, reorder its rows in their stored form, then convert them to floats."""
        rows = self._raw(stored)
        if order is not None:
            rows = rows[order]
        shape = (rows.shape[0], *stored.shape[1:])
        if not rows.size:
            return np.empty(shape, np.float32)
        if stored.kind in _PLAIN:
            return rows.view(_PLAIN[stored.kind]).reshape(shape)
        values = np.asarray(gguf.dequantize(rows, stored.kind), np.float32)
        return values.reshape(shape)

    def _raw(self, stored: _GgufTensor) -> npt.NDArray[np.uint8]:
        try:
            raw = np.fromfile(self._path, np.uint8, stored.nbytes, offset=stored.offset)
        except OSError as error:
            raise CheckpointError(f"{self._path} cannot be read ({error.strerror})") from error
        if raw.size != stored.nbytes:
            raise CheckpointError(f"{self._path} became shorter while it was read")
        return raw.reshape(stored.shape[0], -1) if stored.shape[0] else raw.reshape(0, 1)

    def _check_kinds(self) -> None:
        for name in self._names:
            kind = self._stored[name].kind
            if kind not in _PLAIN and kind.name not in _BLOCKS:
                raise UnsupportedModel(
                    f"{self._path}: tensor {name} is stored as {kind.name}; "
                    f"{', '.join([*(k.name for k in _PLAIN), *_BLOCKS])} are supported"
                )


def rotary_order(rows: int, head_dim: int) -> npt.NDArray[np.intp]:
    """Return the row of a Llama file that holds each Hugging Face row of queries or keys."""
    pairs = np.arange(rows).reshape(-1, head_dim // 2, 2)
    return pairs.swapaxes(1, 2).reshape(rows)


def _read_file(path: Path) -> tuple[dict[str, Any], dict[str, _GgufTensor]]:
    """Read all metadata as Python values, and the place of each tensor (row-major shapes)."""
    try:
        reader = gguf.GGUFReader(path)
        metadata = {key: field.contents() for key, field in reader.fields.items()}
        stored = {
            tensor.name: _GgufTensor(
                tensor.tensor_type,
                tuple(int(n) for n in reversed(tensor.shape)),
                int(tensor.data_offset),
                int(tensor.n_bytes),
            )
            for tensor in reader.tensors
        }
    except (OSError, ValueError, IndexError, KeyError, TypeError, OverflowError) as error:
        raise CheckpointError(
            f"{path} is truncated or not a GGUF file ({error}); download it again"
        ) from error
    if reader.byte_order == "S":
        raise CheckpointError(f"{path} is a big-endian GGUF file; convert it to little-endian")
    if metadata.get("split.count", 0) > 1:
        raise CheckpointError(
            f"{path} is one part of {metadata['split.count']}; "
            "merge them with llama-gguf-split --merge"
        )
    return metadata, stored


def _config(metadata: Mapping[str, Any], stored: Mapping[str, _GgufTensor]) -> dict[str, Any]:
    """Translate the metadata to the keys of a Hugging Face config."""
    name = metadata.get("general.architecture")
    if name not in FAMILIES:
        raise unsupported(f"is of the GGUF architecture {name!r}")
    if metadata.get(f"{name}.expert_count", 0):
        raise unsupported("is a mixture of experts")
    if metadata.get(f"{name}.attention.sliding_window", 0):
        raise unsupported("attends through a sliding window")
    config: dict[str, Any] = {
        key: _required(metadata, f"{name}.{word}") for key, word in _KEYS.items()
    }
    heads, hidden = config["num_attention_heads"], config["hidden_size"]
    if not isinstance(heads, int) or heads <= 0:
        raise unsupported("has another number of heads in each layer")
    head_dim = metadata.get(f"{name}.attention.key_length", hidden // heads)
    for word in ("attention.value_length", "rope.dimension_count"):
        if metadata.get(f"{name}.{word}", head_dim) != head_dim:
            raise unsupported(f"has heads of {head_dim} and {word} {metadata[f'{name}.{word}']}")
    embedding = stored.get("token_embd.weight")
    config |= {
        "model_type": name,
        "num_key_value_heads": metadata.get(f"{name}.attention.head_count_kv", heads),
        "head_dim": head_dim,
        "vocab_size": embedding.shape[0] if embedding else len(metadata["tokenizer.ggml.tokens"]),
        "rms_norm_eps": _shortest(_required(metadata, f"{name}.attention.layer_norm_rms_epsilon")),
        "tie_word_embeddings": "output.weight" not in stored,
        "rope_theta": _shortest(metadata.get(f"{name}.rope.freq_base", 10_000.0)),
        "rope_scaling": _rope_scaling(metadata, f"{name}.rope."),
    }
    return config


def _rope_scaling(metadata: Mapping[str, Any], prefix: str) -> dict[str, Any] | None:
    """Translate llama.cpp's keys to `rope_scaling`; None without scaling.

    Raises `UnsupportedModel` for llama.cpp's own YaRN adjustments, which have no counterpart.
    """
    words = {key[len(prefix) :]: v for key, v in metadata.items() if key.startswith(prefix)}
    factor = words.get("scaling.factor", words.get("scale_linear", 0.0))
    kind = words.get("scaling.type", "linear" if factor not in (0.0, 1.0) else "none")
    if kind == "none" or (kind == "linear" and factor in (0.0, 1.0)):
        return None
    for word, neutral in (
        ("attn_factor", 1.0),
        ("yarn_attn_factor", 1.0),
        ("yarn_ext_factor", 1.0),
    ):
        if words.get(f"scaling.{word}", neutral) != neutral:
            raise unsupported(f"has rope.scaling.{word} {words[f'scaling.{word}']}")
    for word in ("alpha", "yarn_log_multiplier"):
        if words.get(f"scaling.{word}"):
            raise unsupported(f"has rope.scaling.{word}")
    scaling = {"rope_type": kind, "factor": _shortest(factor)}
    optional = {
        "original_max_position_embeddings": "scaling.original_context_length",
        "beta_fast": "scaling.yarn_beta_fast",
        "beta_slow": "scaling.yarn_beta_slow",
    }
    return scaling | {key: words[word] for key, word in optional.items() if word in words}


def _with_factors(config: Mapping[str, Any], factors: npt.NDArray[Any]) -> dict[str, Any]:
    """`rope_parameters` that divide each frequency by its own factor."""
    if config["rope_scaling"] is not None:
        raise unsupported(f"has both {_FREQUENCY_FACTORS} and rope.scaling")
    if 2 * factors.size != config["head_dim"] or not np.all(factors > 0):
        raise CheckpointError(f"tensor {_FREQUENCY_FACTORS} does not fit the head size")
    return {
        "rope_type": "longrope",
        "short_factor": factors.tolist(),
        "long_factor": factors.tolist(),
        "original_max_position_embeddings": config["max_position_embeddings"],
        "attention_factor": 1.0,
    }


def _hugging_face_name(name: str) -> str:
    """Return the Hugging Face name, or the name itself if it is unknown (and refused later)."""
    match = _STORED_NAME.fullmatch(name)
    if match is None or match[2] not in _NAMES:
        return name
    layer = "" if match[1] is None else f"model.layers.{match[1]}."
    return f"{layer}{_NAMES[match[2]]}.{match[3]}"


def _required(metadata: Mapping[str, Any], key: str) -> Any:
    if key not in metadata:
        raise CheckpointError(f"the metadata lacks {key}; download or convert the file again")
    return metadata[key]


def _shortest(value: float) -> float:
    """Return the shortest decimal that rounds to this float32: 1e-05, not 9.99999974e-06."""
    return float(str(np.float32(value)))
