"""Matrices stored as integers, in the format `pack-quantized` of compressed-tensors.

As written by vLLM and llm-compressor, three tensors replace `X.weight` [out, in]:

    X.weight_packed  int32 [out, in * bits / 32]   values + 2 ** (bits - 1), lowest bits first
    X.weight_scale   float [out, in / 32]
    X.weight_shape   int64 [2]                     out, in

Symmetric int4 and int8 in groups of 32 match blocked `DequantizeLinear`, so the integers go into a
graph unchanged. Any other quantisation is refused.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from edgespec.checkpoint import BLOCK_INPUTS, Blocks
from edgespec.errors import CheckpointError, UnsupportedModel
from export.sources.families import unsupported
from export.sources.safetensors_file import FLOATS, StoredTensor

_METHOD, _FORMAT = "compressed-tensors", "pack-quantized"
_PACKED, _SCALE, _SHAPE = "weight_packed", "weight_scale", "weight_shape"
_REFUSED = {
    "weight_g_idx": "the inputs of its groups out of order",
    "weight_zero_point": "zero points",
}


@dataclass(frozen=True)
class Packed:
    """A matrix `[out, in]` that is read as integers, or as float32 after dequantisation."""

    name: str
    packed: StoredTensor
    scale: StoredTensor
    nbytes: int
    """Bytes on disk of all three tensors."""
    shape: tuple[int, int]
    bits: Literal[4, 8]

    def blocks(self, start: int = 0, stop: int | None = None) -> Blocks:
        """Read rows `[start, stop)`. Raises `CheckpointError` for a scale that is not positive."""
        stop = self.shape[0] if stop is None else stop
        words, stored = self.packed.rows(start, stop), self.scale.rows(start, stop)
        scales = stored.astype(np.float32)
        if not (np.isfinite(scales).all() and (scales > 0).all()):
            raise CheckpointError(
                f"{self.scale.path}: {self.name} has scales that are not positive and finite; "
                "the checkpoint is damaged, quantise the model again"
            )
        return Blocks(_unpacked(words, self.bits), scales, self.bits)

    def read(self) -> npt.NDArray[np.float32]:
        return self.rows(0, self.shape[0])

    def rows(self, start: int, stop: int) -> npt.NDArray[np.float32]:
        return dequantised(self.blocks(start, stop))


def dequantised(blocks: Blocks) -> npt.NDArray[np.float32]:
    """Convert `blocks` to float32 [out, in]."""
    values = blocks.values.astype(np.float32)
    grouped = values.reshape(len(values), -1, BLOCK_INPUTS)
    grouped *= blocks.scales[:, :, None]
    return values


def packed_bits(config: Mapping[str, Any]) -> frozenset[int]:
    """Return the bits that a config's `quantization_config` declares; empty without one.

    Raises `UnsupportedModel` for anything other than packed blocks of 32.
    """
    declared = config.get("quantization_config")
    if not declared:
        return frozenset()
    if not isinstance(declared, Mapping) or declared.get("quant_method") != _METHOD:
        method = declared.get("quant_method") if isinstance(declared, Mapping) else declared
        raise _refused(f"{method}")
    groups = declared.get("config_groups")
    if not isinstance(groups, Mapping) or not groups:
        raise _refused("config_groups that say nothing")
    _expect("format", declared.get("format"), _FORMAT)
    for key in ("kv_cache_scheme", "sparsity_config", "moe_sparsity_config", "transform_config"):
        value = declared.get(key)
        if value and not (isinstance(value, Mapping) and value.get("format") == "dense"):
            raise _refused(f"a {key}")
    return frozenset(_group_bits(group) for group in groups.values())


def _group_bits(group: object) -> int:
    if not isinstance(group, Mapping) or not isinstance(group.get("weights"), Mapping):
        raise _refused("a group without weights")
    for activations in ("input_activations", "output_activations"):
        if group.get(activations):
            raise _refused(activations)
    _expect("format", group.get("format") or _FORMAT, _FORMAT)
    weights = group["weights"]
    for key, default, allowed in (
        ("type", "int", ["int"]),
        ("symmetric", True, [True]),
        ("dynamic", False, [False, None]),
        ("strategy", "group", ["group"]),
        ("group_size", None, [BLOCK_INPUTS]),
        ("actorder", None, [None, False, "weight", "static"]),
        ("num_bits", 8, [4, 8]),
    ):
        value = weights.get(key, default)
        _expect(key, "group" if key == "strategy" and value is None else value, *allowed)
    return int(weights.get("num_bits", 8))


def _expect(key: str, value: object, *allowed: object) -> None:
    if value not in allowed:
        raise _refused(f"{key} {value}")


def _refused(what: str) -> UnsupportedModel:
    return unsupported(
        f"was quantised by its publisher with {what} (take the 16-bit original, or one packed by "
        f"{_METHOD} to symmetric int4 or int8 in groups of {BLOCK_INPUTS})"
    )


def with_packed(
    stored: Mapping[str, StoredTensor], bits: frozenset[int]
) -> dict[str, StoredTensor | Packed]:
    """Replace the three tensors of each packed matrix by one, under the matrix's own name.

    Raises `CheckpointError` that names the first matrix whose shapes do not fit together.
    """
    if not bits:
        return dict(stored)
    tensors: dict[str, StoredTensor | Packed] = dict(stored)
    for name in stored:
        stem, _, kind = name.rpartition(".")
        if kind in _REFUSED and f"{stem}.{_PACKED}" in stored:
            raise _refused(f"{_REFUSED[kind]} ({name})")
        if kind == _PACKED:
            if f"{stem}.weight" in stored:
                raise CheckpointError(
                    f"{stored[name].path}: {stem}.weight is stored twice, also as {name}; "
                    "quantise the model again"
                )
            for part in (_PACKED, _SCALE, _SHAPE):
                tensors.pop(f"{stem}.{part}", None)
            tensors[f"{stem}.weight"] = _packed(stem, stored, bits)
    return tensors


def _packed(stem: str, stored: Mapping[str, StoredTensor], bits: frozenset[int]) -> Packed:
    packed, name = stored[f"{stem}.{_PACKED}"], f"{stem}.weight"
    scale, shape = (stored.get(f"{stem}.{part}") for part in (_SCALE, _SHAPE))
    where = f"{packed.path}: {stem}.{_PACKED}"
    if scale is None or shape is None:
        lacking = f"{stem}.{_SCALE if scale is None else _SHAPE}"
        raise CheckpointError(f"{where} comes without {lacking}; complete the download")
    dtypes = (packed.dtype, scale.dtype, shape.dtype)
    if packed.dtype != "I32" or scale.dtype not in FLOATS or shape.dtype not in ("I64", "I32"):
        raise CheckpointError(
            f"{where} has the dtypes {', '.join(dtypes)}; int32, a float and int64 are expected"
        )
    size = shape.read().tolist() if shape.shape == (2,) else []
    for one in sorted(bits):
        if size and min(size) > 0 and size[1] % BLOCK_INPUTS == 0:
            rows, inputs = size
            fits = packed.shape == (rows, inputs * one // 32)
            if fits and scale.shape == (rows, inputs // BLOCK_INPUTS):
                total = packed.nbytes + scale.nbytes + shape.nbytes
                return Packed(name, packed, scale, total, (rows, inputs), 4 if one == 4 else 8)
    raise CheckpointError(
        f"{where} {list(packed.shape)}, its scales {list(scale.shape)} and its shape {size} do not "
        f"fit together in groups of {BLOCK_INPUTS}; the checkpoint is damaged, quantise the model "
        "again"
    )


def _unpacked(words: npt.NDArray[np.int32], bits: int) -> npt.NDArray[np.int8]:
    octets = np.ascontiguousarray(words).view(np.uint8)
    if bits == 8:
        return (octets ^ np.uint8(128)).view(np.int8)
    values = np.empty((len(words), octets.shape[1] * 2), np.int8)
    values[:, 0::2] = octets & 15
    values[:, 1::2] = octets >> 4
    values -= 8
    return values
