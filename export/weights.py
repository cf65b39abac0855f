"""Streaming weights from a checkpoint into the data files beside the graphs.

A matrix is read, converted, appended to its file and forgotten; the graph keeps an external tensor
(path, offset, length). Peak memory is one matrix and its converted copy. What two graphs of a
folder share (tied embedding and head, rotary tables) is stored once and referred to by both.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from edgespec.checkpoint import Checkpoint
from edgespec.errors import CheckpointError, UnsupportedModel
from edgespec.manifest import Precision
from export.quantise import BLOCK, quantise

ALIGNMENT = 64
_ROWS = 8192
"""Rows of an embedding converted at a time."""
_BITS: dict[Precision, Any] = {"int8": 8, "int4": 4}
_FLOATS: dict[Precision, Any] = {"fp32": np.float32, "fp16": np.float16}

Advance = Callable[[int], None]
"""Called with the checkpoint bytes that have been dealt with."""


class Quantised(NamedTuple):
    values: ir.ExternalTensor
    scales: ir.ExternalTensor


Matrix = ir.ExternalTensor | Quantised
Ids = npt.NDArray[np.int64] | None
"""Ascending rows of a matrix; None for all of them."""


def float_type(precision: Precision) -> Any:
    """The numpy type that activations have beside weights of `precision`."""
    return np.float16 if precision == "fp16" else np.float32


class WeightFolder:
    """The data files of one folder of graphs, fed from one checkpoint."""

    def __init__(self, folder: Path, checkpoint: Checkpoint, advance: Advance) -> None:
        self.checkpoint = checkpoint
        self._folder = folder
        self._advance = advance
        self._tables: dict[tuple[str, Precision], ir.ExternalTensor] = {}

    def has(self, name: str) -> bool:
        return name in self.checkpoint.names()

    def vector(self, name: str, dtype: npt.DTypeLike) -> npt.NDArray[Any]:
        """A norm's weight or a bias; small, so it stays inside the graph."""
        with np.errstate(over="ignore"):
            vector = self.checkpoint.tensor(name).astype(dtype)
        _check_finite(name, vector, "fp16" if dtype == np.float16 else "fp32")
        self._advance(self.checkpoint.nbytes(name))
        return vector

    def linear(self, file: str, name: str, precision: Precision, kept: Ids = None) -> Matrix:
        """A projection, turned to `[inputs, outputs]` as MatMul wants it; of `kept` rows alone.

        Integers that the checkpoint has stay what they are, whichever bits `precision` asks for.
        """
        blocks = None if precision in _FLOATS else self.checkpoint.blocks(name)
        rows = slice(None) if kept is None else kept
        if blocks is not None:
            values = blocks.values[rows].T.astype(np.int8 if blocks.bits == 8 else ml_dtypes.int4)
            stored: Matrix = self._quantised(file, name, values, blocks.scales[rows].T)
        else:
            stored = self._store(file, name, self.checkpoint.tensor(name)[rows].T, precision)
        self._advance(self.checkpoint.nbytes(name))
        return stored

    def table(self, name: str, precision: Precision, kept: Ids = None) -> ir.ExternalTensor:
        """An embedding `[vocabulary, hidden]` in a float precision, stored once a folder; or the
        `kept` rows of it, which are another table."""
        key = (name if kept is None else f"{name}.kept", precision)
        if key not in self._tables:
            dtype = _FLOATS[precision]
            size, width = self.checkpoint.shape(name)

            def rows() -> Iterator[npt.NDArray[Any]]:
                for start in range(0, size, _ROWS):
                    block = self.checkpoint.rows(name, start, min(start + _ROWS, size))
                    part = block
                    if kept is not None:
                        part = block[kept[(kept >= start) & (kept < start + _ROWS)] - start]
                    with np.errstate(over="ignore"):
                        converted = part.astype(dtype)
                    _check_finite(name, converted, precision)
                    yield converted
                    self._advance(self.checkpoint.nbytes(name) * len(block) // size)

            file = "head" if name == "lm_head.weight" or kept is not None else "embedding"
            shape = (size if kept is None else len(kept), width)
            self._tables[key] = self._append(file, f"{key[0]}.{precision}", rows(), shape, dtype)
        return self._tables[key]

    def head(self, name: str, precision: Precision) -> Matrix:
        """The output matrix: `[vocabulary, hidden]` in a float precision, so that a tied one is
        the embedding itself; `[hidden, vocabulary]` when quantised. A trimmed one has its kept
        rows alone."""
        kept = self.checkpoint.kept_ids
        return (
            self.table(name, precision, kept)
            if precision in _FLOATS
            else self.linear("head", name, precision, kept)
        )

    def rotary(self, context: int, dtype: npt.DTypeLike) -> tuple[ir.ExternalTensor, ...]:
        """Cosines and sines, each `[context, head_dim / 2]`."""
        rope = self.checkpoint.rope
        key: Precision = "fp16" if dtype == np.float16 else "fp32"
        for name, function in (("cos", np.cos), ("sin", np.sin)):
            if (name, key) not in self._tables:
                # float32 throughout, as transformers computes them.
                angles = np.arange(context, dtype=np.float32)[:, None] * rope.inverse_frequencies
                table = (function(angles) * np.float32(rope.attention_factor)).astype(dtype)
                self._tables[name, key] = self._append(
                    "rotary", name, iter([table]), table.shape, dtype
                )
        return self._tables["cos", key], self._tables["sin", key]

    def _store(
        self, file: str, name: str, matrix: npt.NDArray[Any], precision: Precision
    ) -> Matrix:
        if precision in _FLOATS:
            dtype = _FLOATS[precision]
            with np.errstate(over="ignore"):  # found just below
                data = np.ascontiguousarray(matrix, dtype)
            _check_finite(name, data, precision)
            return self._append(file, name, iter([data]), matrix.shape, dtype)
        if matrix.shape[0] % BLOCK:
            raise UnsupportedModel(
                f"{name} has {matrix.shape[0]} inputs, no multiple of {BLOCK}, so it cannot be "
                f"stored as {precision}; export it as fp32 or fp16"
            )
        _check_finite(name, matrix, precision)
        return self._quantised(file, name, *quantise(matrix, _BITS[precision]))

    def _quantised(
        self, file: str, name: str, values: npt.NDArray[Any], scales: npt.NDArray[np.float32]
    ) -> Quantised:
        """Blocks as `quantise` gives them: values `[inputs, outputs]`."""
        return Quantised(
            self._append(file, f"{name}.values", iter([values]), values.shape, values.dtype),
            self._append(file, f"{name}.scales", iter([scales]), scales.shape, scales.dtype),
        )

    def _append(
        self,
        file: str,
        name: str,
        blocks: Iterator[npt.NDArray[Any]],
        shape: tuple[int, ...],
        dtype: npt.DTypeLike,
    ) -> ir.ExternalTensor:
        path = self._folder / f"{file}.data"
        with path.open("ab") as data:
            data.write(b"\0" * (-data.tell() % ALIGNMENT))
            offset = data.tell()
            for block in blocks:
                data.write(_raw(block))
            length = data.tell() - offset
        kind = (
            ir.DataType.INT4 if dtype == ml_dtypes.int4 else ir.DataType.from_numpy(np.dtype(dtype))
        )
        return ir.ExternalTensor(
            path.name, offset, length, kind, name=name, shape=ir.Shape(shape),
            base_dir=self._folder,
        )  # fmt: skip


def _check_finite(name: str, matrix: npt.NDArray[Any], precision: Precision) -> None:
    if not np.isfinite(matrix).all():
        raise CheckpointError(
            f"tensor {name} holds numbers that are not finite as {precision}; "
            "the checkpoint is damaged, or too large for that precision"
        )


def _raw(block: npt.NDArray[Any]) -> bytes | memoryview:
    """Bytes as ONNX stores them: little-endian; two int4 a byte, the first in the low half."""
    if block.dtype == ml_dtypes.int4:
        nibbles = block.astype(np.int8).reshape(-1).view(np.uint8) & 15
        return (nibbles[0::2] | nibbles[1::2] << 4).tobytes()
    return np.ascontiguousarray(block).data.cast("B")
