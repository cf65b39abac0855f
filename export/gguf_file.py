"""Writing a draft as a GGUF file, which llama.cpp runs.

int8 is stored as Q8_0 and int4 as Q4_0: 32 inputs of an output share a scale, as in
`export/quantise.py`, and the scale is rounded to fp16. The integers of a quantised checkpoint are
kept, and so are the blocks of a GGUF file where they are small enough: a target in Q4_1 is its own
int4 draft, with exactly its weights. The file holds no tokenizer, since ids go in and logits come
out. Its layout is that of the GGUF specification in github.com/ggml-org/ggml;
`export/sources/gguf.py` reads it back.
"""

from __future__ import annotations

import math
import re
from contextlib import closing
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import numpy.typing as npt
from gguf import GGMLQuantizationType as Kind

from edgespec.checkpoint import BLOCK_INPUTS, Checkpoint
from edgespec.errors import UnsupportedModel
from edgespec.manifest import Precision, Precisions
from edgespec.progress import progress
from export.quantise import quantise
from export.sources.gguf import GgufCheckpoint, rotary_order
from export.weights import check_inputs, converted

_KINDS: dict[Precision, Kind] = {
    "fp32": Kind.F32,
    "fp16": Kind.F16,
    "int8": Kind.Q8_0,
    "int4": Kind.Q4_0,
}
_FLOATS: dict[Kind, Any] = {Kind.F32: np.float32, Kind.F16: np.float16}
_MOST_BITS: dict[Precision, float] = {"int8": 8.5, "int4": 5.0}
"""Largest bits of a weight, with its share of scales, in the kept blocks of a GGUF file."""
_ROWS = 4096
"""Rows that are read and rounded at a time."""
_VOCABULARY = ("model.embed_tokens.weight", "lm_head.weight")

Bytes = npt.NDArray[np.uint8]


def write_gguf(
    path: Path, checkpoint: Checkpoint, chosen: Precisions, context: int, label: str
) -> None:
    """Write all weights. `label` names the work beside its progress.

    Raises `UnsupportedModel` for what llama.cpp cannot express: a trimmed vocabulary, rotary
    frequencies of another family's kind, and inputs that are no multiple of 32.
    """
    if checkpoint.kept_ids is not None:
        raise UnsupportedModel(
            f"{checkpoint.name} has a trimmed vocabulary, which llama.cpp cannot run; choose a "
            "profile of ONNX Runtime, such as cpu-int4"
        )
    writer = gguf.GGUFWriter(path, checkpoint.architecture.family)
    with closing(writer):
        _describe(writer, checkpoint, context)
        factors = _frequency_factors(checkpoint)
        if factors is not None:
            writer.add_tensor("rope_freqs.weight", factors)
        names = gguf.get_tensor_name_map(
            gguf.MODEL_ARCH[checkpoint.architecture.family.upper()], checkpoint.architecture.layers
        )
        kinds = {name: _kind(checkpoint, name, chosen) for name in checkpoint.names()}
        for name, kind in kinds.items():
            stored = names.get_name(name, try_suffixes=(".weight", ".bias"))
            bytes_shape = gguf.quants.quant_shape_to_byte_shape(checkpoint.shape(name), kind)
            shape = checkpoint.shape(name) if kind in _FLOATS else bytes_shape
            dtype = np.dtype(_FLOATS.get(kind, np.uint8))
            raw = None if kind in _FLOATS else kind
            writer.add_tensor_info(stored, shape, dtype, math.prod(bytes_shape), raw)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        if factors is not None:
            writer.write_tensor_data(factors)
        with progress(label, sum(map(checkpoint.nbytes, kinds))) as advance:
            for name, kind in kinds.items():
                writer.write_tensor_data(_packed(checkpoint, name, kind))
                advance(checkpoint.nbytes(name))


def _describe(writer: gguf.GGUFWriter, checkpoint: Checkpoint, context: int) -> None:
    shapes = checkpoint.architecture
    writer.add_name(checkpoint.name)
    writer.add_vocab_size(shapes.vocabulary)
    writer.add_context_length(context)
    writer.add_embedding_length(shapes.hidden)
    writer.add_block_count(shapes.layers)
    writer.add_feed_forward_length(shapes.intermediate)
    writer.add_head_count(shapes.heads)
    writer.add_head_count_kv(shapes.kv_heads)
    writer.add_key_length(shapes.head_dim)
    writer.add_value_length(shapes.head_dim)
    writer.add_layer_norm_rms_eps(shapes.norm_epsilon)
    writer.add_rope_dimension_count(shapes.head_dim)
    writer.add_rope_freq_base(_theta(checkpoint))
    writer.add_tokenizer_model("none")


def _theta(checkpoint: Checkpoint) -> float:
    """`rope_theta`, from the declared parameters or the frequencies."""
    declared = checkpoint.rope.parameters.get("rope_theta")
    if isinstance(declared, int | float):
        return float(declared)
    first = float(checkpoint.rope.inverse_frequencies[1])
    return float(first ** (-checkpoint.architecture.head_dim / 2))


def _frequency_factors(checkpoint: Checkpoint) -> npt.NDArray[np.float32] | None:
    """Divisors of the plain frequencies, [head_dim / 2]; None if the frequencies are plain."""
    rope, half = checkpoint.rope, checkpoint.architecture.head_dim // 2
    plain = _theta(checkpoint) ** (-np.arange(half) / half)
    factors = (plain / rope.inverse_frequencies).astype(np.float32)
    plain_only = bool(np.allclose(factors, 1.0, rtol=1e-4))
    if rope.attention_factor != 1.0 or not (
        plain_only or checkpoint.architecture.family == "llama"
    ):
        raise UnsupportedModel(
            f"{checkpoint.name} scales its rotary embedding in a way that a GGUF file of the "
            f"family {checkpoint.architecture.family} cannot express; choose a profile of ONNX "
            "Runtime, such as cpu-int4"
        )
    return None if plain_only else factors


def _kind(checkpoint: Checkpoint, name: str, chosen: Precisions) -> Kind:
    """The type in which a tensor is stored. The embedding has the head's, as a tied one must."""
    if len(checkpoint.shape(name)) == 1:
        return Kind.F32
    if bits := checkpoint.bits(name):
        return Kind.Q8_0 if bits == 8 else Kind.Q4_0
    precision = chosen.head if name in _VOCABULARY else chosen.layers
    kept = _kept_kind(checkpoint, name, precision)
    if kept is not None:
        return kept
    if _KINDS[precision] in _BLOCKS:
        check_inputs(name, checkpoint.shape(name)[1], precision)
    return _KINDS[precision]


def _kept_kind(checkpoint: Checkpoint, name: str, precision: Precision) -> Kind | None:
    """The type of a GGUF file's own blocks if they fit `precision`, else None."""
    if not isinstance(checkpoint, GgufCheckpoint) or precision not in _MOST_BITS:
        return None
    kind = checkpoint.kind(name)
    weights, size = gguf.GGML_QUANT_SIZES[kind]
    return kind if 8 * size / weights <= _MOST_BITS[precision] else None


def _packed(checkpoint: Checkpoint, name: str, kind: Kind) -> npt.NDArray[Any]:
    """A tensor as the file has it: floats, or a row of blocks for each output."""
    packed: npt.NDArray[Any]
    if isinstance(checkpoint, GgufCheckpoint) and kind == checkpoint.kind(name) not in _FLOATS:
        return checkpoint.stored_rows(name)
    if len(checkpoint.shape(name)) == 1:
        packed = converted(name, checkpoint.tensor(name), np.dtype(np.float32))
    elif (blocks := checkpoint.blocks(name)) is not None:
        packed = _BLOCKS[kind](blocks.values, blocks.scales)
    else:
        starts = range(0, checkpoint.shape(name)[0], _ROWS)
        packed = np.concatenate([_rows(checkpoint, name, kind, start) for start in starts])
    shapes = checkpoint.architecture
    if shapes.family == "llama" and re.search(r"\.self_attn\.[qk]_proj\.", name):
        packed = packed[np.argsort(rotary_order(len(packed), shapes.head_dim))]
    return packed


def _rows(checkpoint: Checkpoint, name: str, kind: Kind, start: int) -> npt.NDArray[Any]:
    size = checkpoint.shape(name)[0]
    rows = checkpoint.rows(name, start, min(start + _ROWS, size))
    floats = converted(name, rows, np.dtype(_FLOATS.get(kind, np.float32)))
    if kind in _FLOATS:
        return floats
    values, scales = quantise(floats.T, 8 if kind is Kind.Q8_0 else 4)
    return _BLOCKS[kind](values.T.astype(np.int8), scales.T)


def _eight_bits(values: npt.NDArray[np.int8], scales: npt.NDArray[np.float32]) -> Bytes:
    """Q8_0: for each block an fp16 scale and 32 bytes."""
    blocks = values.reshape(len(values), -1, BLOCK_INPUTS).view(np.uint8)
    return _joined(scales, blocks)


def _four_bits(values: npt.NDArray[np.int8], scales: npt.NDArray[np.float32]) -> Bytes:
    """Q4_0: an fp16 scale and 16 bytes, whose low halves are the first 16 values plus 8."""
    blocks = (values.reshape(len(values), -1, BLOCK_INPUTS) + 8).astype(np.uint8)
    half = BLOCK_INPUTS // 2
    low, high = blocks[..., :half], blocks[..., half:]
    return _joined(scales, low | np.left_shift(high, 4, dtype=np.uint8))


def _joined(scales: npt.NDArray[np.float32], blocks: Bytes) -> Bytes:
    rounded = np.ascontiguousarray(scales, "<f2")[..., None].view(np.uint8)
    return np.concatenate([rounded, blocks], axis=-1).reshape(len(blocks), -1)


_BLOCKS = {Kind.Q8_0: _eight_bits, Kind.Q4_0: _four_bits}
