"""Streaming weights from a checkpoint into the data files of a folder of graphs.

A matrix is read some rows at a time, converted, appended to its file and released. The graph keeps
an external tensor (path, offset, length). Peak memory is one converted matrix and a few rows.
Weights that two graphs of a folder share (tied embedding and head, rotary tables) are stored once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from edgespec.checkpoint import BLOCK_INPUTS, Checkpoint
from edgespec.errors import CheckpointError, UnsupportedModel
from edgespec.manifest import Precision
from export.data_files import DataFiles, Piece
from export.quantise import quantise

_READ_BYTES = 1 << 22
"""Approximate bytes of a checkpoint that are read at a time."""
_TRANSPOSED_ROWS = 16
"""Rows transposed at a time. More cache lines, a power of two apart, evict each other from the
first-level cache (1.6 times slower with 32, nine times with all of a Llama-2-7B matrix)."""
_WRITE_BYTES = 1 << 22
"""Approximate bytes that are hashed and written at a time."""
_BITS: dict[Precision, Any] = {"int8": 8, "int4": 4}
_FLOATS: dict[Precision, Any] = {"fp32": np.float32, "fp16": np.float16}

Advance = Callable[[int], None]
"""Called with the number of checkpoint bytes that were processed."""


class QuantisedTensors(NamedTuple):
    """A quantised matrix in a data file."""

    values: ir.ExternalTensor
    scales: ir.ExternalTensor


Matrix = ir.ExternalTensor | QuantisedTensors
Arrays = Sequence[npt.NDArray[Any]]
"""A matrix `[inputs, outputs]`: its floats, or the two results of `quantise`."""
Ids = npt.NDArray[np.int64] | None
"""Ascending rows of a matrix; None for all of them."""


def float_type(precision: Precision) -> Any:
    """Return the numpy type of activations for weights of `precision`."""
    return np.float16 if precision == "fp16" else np.float32


class WeightFolder:
    """The data files of one folder of graphs, filled from one checkpoint."""

    def __init__(
        self, folder: Path, files: DataFiles, checkpoint: Checkpoint, advance: Advance
    ) -> None:
        self.checkpoint = checkpoint
        self._folder = folder
        self._files = files
        self._advance = advance
        self._tables: dict[tuple[str, Precision], ir.ExternalTensor] = {}

    def has(self, name: str) -> bool:
        return name in self.checkpoint.names()

    def vector(self, name: str, dtype: npt.DTypeLike) -> npt.NDArray[Any]:
        """Read a norm's weight or a bias, which is stored inside the graph because it is small."""
        vector = converted(name, self.checkpoint.tensor(name), np.dtype(dtype))
        self._advance(self.checkpoint.nbytes(name))
        return vector

    def linear(self, file: str, name: str, precision: Precision, kept: Ids = None) -> Matrix:
        """Store a projection, or its `kept` rows, transposed to `[inputs, outputs]` for MatMul.

        Integers of a quantised checkpoint are stored unchanged, for any quantised `precision`.
        """
        return self._store(file, name, self._read(name, precision, kept))

    def joined(
        self, file: str, name: str, parts: Sequence[str], precision: Precision
    ) -> list[Matrix]:
        """Store projections of the same inputs side by side, as one matrix `name`.

        Stores each one alone if a quantised checkpoint gives them different numbers of bits.
        """
        read = [self._read(part, precision) for part in parts]
        if len({part.dtype for part, *_ in read}) > 1:
            return [self._store(file, part, one) for part, one in zip(parts, read, strict=True)]
        whole = [np.concatenate(arrays, axis=1) for arrays in zip(*read, strict=True)]
        return [self._store(file, name, whole)]

    def _read(self, name: str, precision: Precision, kept: Ids = None) -> Arrays:
        """Read a projection as `[inputs, outputs]`: floats, or values and scales."""
        blocks = None if precision in _FLOATS else self.checkpoint.blocks(name)
        rows = slice(None) if kept is None else kept
        if blocks is not None:
            values = blocks.values[rows].T.astype(np.int8 if blocks.bits == 8 else ml_dtypes.int4)
            self._advance(self.checkpoint.nbytes(name))
            return values, blocks.scales[rows].T
        if precision in _FLOATS:
            return (self._transposed(name, np.dtype(_FLOATS[precision]), kept),)
        return self._rounded(name, precision, kept)

    def _store(self, file: str, name: str, arrays: Arrays) -> Matrix:
        if len(arrays) == 1:
            return self._append(file, name, arrays[0])
        values, scales = arrays
        return QuantisedTensors(
            self._append(file, f"{name}.values", values),
            self._append(file, f"{name}.scales", scales),
        )

    def table(self, name: str, precision: Precision, kept: Ids = None) -> ir.ExternalTensor:
        """Store an embedding `[vocabulary, hidden]`, or its `kept` rows, in a float precision.

        A second call returns the tensor of the first.
        """
        key = (name if kept is None else f"{name}.kept", precision)
        if key not in self._tables:
            dtype = np.dtype(_FLOATS[precision])
            file = "head" if name == "lm_head.weight" or kept is not None else "embedding"
            shape = self._shape(name, kept)
            blocks = (converted(name, rows, dtype) for _, rows in self._blocks(name, kept))
            stored_as = f"{key[0]}.{precision}"
            self._tables[key] = self._append_blocks(file, stored_as, blocks, shape, dtype)
        return self._tables[key]

    def head(self, name: str, precision: Precision) -> Matrix:
        """Store the output matrix; a trimmed one has its kept rows only.

        Its shape is `[vocabulary, hidden]` in a float precision, so that a tied matrix is the
        embedding itself, and `[hidden, vocabulary]` if quantised.
        """
        kept = self.checkpoint.kept_ids
        return (
            self.table(name, precision, kept)
            if precision in _FLOATS
            else self.linear("head", name, precision, kept)
        )

    def rotary(self, context: int, dtype: npt.DTypeLike) -> tuple[ir.ExternalTensor, ...]:
        """Store cosines and sines, each `[context, head_dim / 2]`."""
        rope = self.checkpoint.rope
        key: Precision = "fp16" if dtype == np.float16 else "fp32"
        for name, function in (("cos", np.cos), ("sin", np.sin)):
            if (name, key) not in self._tables:
                # float32 throughout, as transformers computes them.
                angles = np.arange(context, dtype=np.float32)[:, None] * rope.inverse_frequencies
                table = (function(angles) * np.float32(rope.attention_factor)).astype(dtype)
                self._tables[name, key] = self._append("rotary", name, table)
        return self._tables["cos", key], self._tables["sin", key]

    def _shape(self, name: str, kept: Ids) -> tuple[int, int]:
        """Return the number of rows (of `kept` rows if given) and of inputs."""
        size, inputs = self.checkpoint.shape(name)
        return size if kept is None else len(kept), inputs

    def _blocks(self, name: str, kept: Ids) -> Iterator[tuple[int, npt.NDArray[Any]]]:
        """Yield a matrix `[out, in]` a few rows at a time, as (number of the first row, rows)."""
        size, inputs = self.checkpoint.shape(name)
        step = max(_READ_BYTES // (2 * inputs) // _TRANSPOSED_ROWS, 1) * _TRANSPOSED_ROWS
        done = 0
        for start in range(0, size, step):
            rows = self.checkpoint.rows(name, start, min(start + step, size))
            part = rows
            if kept is not None:
                part = rows[kept[(kept >= start) & (kept < start + step)] - start]
            yield done, part
            done += len(part)
            self._advance(self.checkpoint.nbytes(name) * len(rows) // size)

    def _transposed(self, name: str, dtype: np.dtype[Any], kept: Ids) -> npt.NDArray[Any]:
        """Read a matrix as `[inputs, outputs]` in a float type."""
        outputs, inputs = self._shape(name, kept)
        transposed = np.empty((inputs, outputs), dtype)
        for first, rows in self._blocks(name, kept):
            for start in range(0, len(rows), _TRANSPOSED_ROWS):
                part = converted(name, rows[start : start + _TRANSPOSED_ROWS], dtype)
                transposed[:, first + start : first + start + len(part)] = part.T
        return transposed

    def _rounded(
        self, name: str, precision: Precision, kept: Ids
    ) -> tuple[npt.NDArray[Any], npt.NDArray[np.float32]]:
        """Read and quantise a matrix. Return the result of `quantise`."""
        outputs, inputs = self._shape(name, kept)
        check_inputs(name, inputs, precision)
        values = np.empty((inputs, outputs), np.int8 if precision == "int8" else ml_dtypes.int4)
        scales = np.empty((inputs // BLOCK_INPUTS, outputs), np.float32)
        for first, rows in self._blocks(name, kept):
            _check_finite(name, rows, precision)
            for start in range(0, len(rows), _TRANSPOSED_ROWS):
                part = rows[start : start + _TRANSPOSED_ROWS]
                cut = slice(first + start, first + start + len(part))
                values[:, cut], scales[:, cut] = quantise(part.T, _BITS[precision])
        return values, scales

    def _append(self, file: str, name: str, array: npt.NDArray[Any]) -> ir.ExternalTensor:
        # An even number of rows, because two int4 share a byte.
        step = max(_WRITE_BYTES // (2 * array.shape[1] * array.itemsize), 1) * 2
        blocks = (array[start : start + step] for start in range(0, len(array), step))
        return self._append_blocks(file, name, blocks, array.shape, array.dtype)

    def _append_blocks(
        self,
        file: str,
        name: str,
        blocks: Iterator[npt.NDArray[Any]],
        shape: tuple[int, ...],
        dtype: np.dtype[Any],
    ) -> ir.ExternalTensor:
        place = f"{file}.data"
        offset, length = self._files.append(place, (_raw(block) for block in blocks))
        kind = ir.DataType.INT4 if dtype == ml_dtypes.int4 else ir.DataType.from_numpy(dtype)
        return ir.ExternalTensor(
            place, offset, length, kind, name=name, shape=ir.Shape(shape),
            base_dir=self._folder,
        )  # fmt: skip


def check_inputs(name: str, inputs: int, precision: Precision) -> None:
    """Raises `UnsupportedModel` for a matrix that cannot be cut into blocks."""
    if inputs % BLOCK_INPUTS:
        raise UnsupportedModel(
            f"{name} has {inputs} inputs, no multiple of {BLOCK_INPUTS}, so it cannot be "
            f"stored as {precision}; export it as fp32 or fp16"
        )


def converted(name: str, block: npt.NDArray[Any], dtype: np.dtype[Any]) -> npt.NDArray[Any]:
    """Convert to a float type. Raises `CheckpointError` for a number that is not finite in it."""
    with np.errstate(over="ignore"):  # checked below
        converted = block.astype(dtype, copy=False)
    _check_finite(name, converted, "fp16" if dtype == np.float16 else "fp32")
    return converted


def _check_finite(name: str, block: npt.NDArray[Any], precision: Precision) -> None:
    if not _finite(block):
        raise CheckpointError(
            f"tensor {name} holds numbers that are not finite as {precision}; "
            "the checkpoint is damaged, or too large for that precision"
        )


def _finite(block: npt.NDArray[Any]) -> bool:
    """Return True if all numbers are finite.

    For 16-bit floats the exponents are compared, which is nine times as fast as `np.isfinite`.
    """
    ones = {np.dtype(np.float16): 0x7C00, np.dtype(ml_dtypes.bfloat16): 0x7F80}.get(block.dtype)
    if ones is None:
        return bool(np.isfinite(block).all())
    return int((block.view(np.uint16) & np.uint16(ones)).max(initial=0)) < ones


def _raw(block: npt.NDArray[Any]) -> Piece:
    """Return bytes in ONNX's format: little-endian, two int4 per byte with the first one low."""
    if block.dtype == ml_dtypes.int4:
        nibbles = block.view(np.uint8).reshape(-1) & 15
        return (nibbles[0::2] | nibbles[1::2] << 4).tobytes()
    return np.ascontiguousarray(block).data.cast("B")
