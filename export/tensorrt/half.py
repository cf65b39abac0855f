"""Converting a graph to 16-bit floats for TensorRT.

TensorRT has no fp32 attention kernel, and graphs with int8 or int4 weights have fp32 activations,
so floats become fp16 (or bf16). The copy is written to the folder of the graph, so that unchanged
weights are not copied; neither the weights nor a protobuf of gigabytes is held in memory. The costs
are: rounding to 11 bits (bf16: 8); scales below 6e-5 lose digits in fp16; hidden states and logits
beyond 65504 overflow in fp16, but not in bf16.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import ml_dtypes
import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from edgespec.checkpoint import BLOCK_INPUTS
from edgespec.errors import EngineError
from edgespec.manifest import HalfFloat
from engines.external_data import numbers
from export.tensorrt.pinned import initializer, pin, sizes

_TYPES = {
    "fp16": (ir.DataType.FLOAT16, np.dtype(np.float16)),
    "bf16": (ir.DataType.BFLOAT16, np.dtype(ml_dtypes.bfloat16)),
}
_WIDE = {"Pow", "ReduceMean", "Sqrt"}
"""Operators of a norm in plain form, whose squares need fp32."""
_LEAST_FP16 = np.float32(2.0**-24)
"""The smallest positive number in fp16."""
_PIECE_WEIGHTS = 1 << 22
"""Weights converted at a time."""
_PREFIX = "."
"""Beginning of the names of files written here."""

Array = npt.NDArray[Any]


class Narrowed:
    """The graph at `path` with its floats as `floats`, in files of the same folder.

    Without `int8_blocks` (int8 in blocks for `DequantizeLinear`), such weights become floats too:
    the same values, rounded once more, in twice the space.

    Raises `EngineError` for a weight that fp16 cannot represent.
    """

    def __init__(self, path: Path, floats: HalfFloat, *, int8_blocks: bool) -> None:
        self._path = path
        self._data = path.with_name(f"{_PREFIX}{path.stem}.floats.data")
        self._graph = path.with_name(f"{_PREFIX}{path.stem}.floats.onnx")
        self._written: list[Path] = [self._data, self._graph]
        model = ir.load(path)
        with self._data.open("wb") as data:
            narrowing = _Narrowing(model, path, floats, data)
            if not int8_blocks:
                narrowing.unpack_int8()
            narrowing.run()
        ir.save(model, self._graph)

    def pinned(self, capacity: int) -> Path:
        """Write a copy with slots of `capacity` positions to another file and return its path."""
        model = ir.load(self._graph)
        pin(model, capacity)
        path = self._path.with_name(f"{_PREFIX}{self._path.stem}.{capacity}.onnx")
        self._written.append(path)
        ir.save(model, path)
        return path

    def remove(self) -> None:
        for path in self._written:
            path.unlink(missing_ok=True)


class _Narrowing:
    """A conversion of a model's floats that appends converted weights to `data`."""

    def __init__(self, model: ir.Model, path: Path, floats: HalfFloat, data: BinaryIO) -> None:
        self.graph = model.graph
        self._path = path
        self._floats = floats
        self._kind, self._dtype = _TYPES[floats]
        self._data = data
        shown = {value.dtype for value in [*self.graph.inputs, *self.graph.outputs]}
        self._from = ir.DataType.FLOAT if ir.DataType.FLOAT in shown else ir.DataType.FLOAT16
        """Type of activations; values of another type keep it."""

    def run(self) -> None:
        if self._from == self._kind:
            return
        wide = self._norms() if self._from == ir.DataType.FLOAT else set()
        kept = {value for node in wide for value in node.inputs if value and value.is_initializer()}
        scales = {node.inputs[1] for node in self.graph if node.op_type == "DequantizeLinear"}
        for value in list(self.graph.initializers.values()):
            if value.dtype == self._from and value not in kept:
                tensor = value.const_value
                assert tensor is not None
                value.const_value = self._stored(tensor, _pieces(tensor, value in scales))
                value.type = ir.TensorType(self._kind)
        for value in [*self.graph.inputs, *self.graph.outputs]:
            self._retype(value)
        for node in list(self.graph):
            for value in node.outputs:
                self._retype(value)
            if node.op_type == "Cast" and node.attributes["to"].as_int() == int(self._from):
                node.attributes["to"] = ir.AttrInt64("to", int(self._kind))
        self._widen(wide)

    def unpack_int8(self) -> None:
        """Convert int8 in blocks to floats of the future activations' type."""
        for node in list(self.graph):
            if node.op_type != "DequantizeLinear" or "block_size" not in node.attributes:
                continue
            values, scales = node.inputs[0], node.inputs[1]
            assert values is not None and scales is not None
            if values.dtype != ir.DataType.INT8:
                continue
            assert values.const_value is not None and scales.const_value is not None
            floats = _unpacked(values.const_value, scales.const_value)
            stored = self._stored(values.const_value, floats)
            out = initializer(self.graph, f"{values.name}.floats", stored)
            node.outputs[0].replace_all_uses_with(out)
            self.graph.remove(node, safe=True)
            for value in (values, scales):
                if not value.uses():
                    self.graph.initializers.pop(str(value.name))

    def _norms(self) -> set[ir.Node]:
        """Return the nodes from a norm's square to its quotient, both included."""
        ends = {("Add", "ReduceMean"), ("Div", "Sqrt")}
        found = set()
        for node in self.graph:
            before = {p.op_type for p in map(_producer, node.inputs) if p is not None}
            if node.op_type in _WIDE or any((node.op_type, kind) in ends for kind in before):
                found.add(node)
        return found

    def _widen(self, wide: set[ir.Node]) -> None:
        """Add casts at the inputs and outputs of a region that stays fp32."""
        for node in list(self.graph):
            if node not in wide:
                continue
            for place, value in enumerate(node.inputs):
                if (
                    value is not None
                    and not value.is_initializer()
                    and value.producer() not in wide
                ):
                    node.replace_input_with(place, self._cast(value, ir.DataType.FLOAT, node))
            out = node.outputs[0]
            out.type = ir.TensorType(ir.DataType.FLOAT)
            leaving = [use for use in out.uses() if use.node not in wide]
            if leaving:
                narrow = self._cast(out, self._kind, node, after=True)
                for use in leaving:
                    use.node.replace_input_with(use.idx, narrow)

    def _cast(
        self, value: ir.Value, to: ir.DataType, node: ir.Node, *, after: bool = False
    ) -> ir.Value:
        cast = ir.node("Cast", [value], {"to": int(to)}, name=f"{node.name}.{value.name}.{to.name}")
        cast.outputs[0].name = cast.name
        cast.outputs[0].type = ir.TensorType(to)
        (self.graph.insert_after if after else self.graph.insert_before)(node, cast)
        return cast.outputs[0]

    def _retype(self, value: ir.Value) -> None:
        if value.dtype == self._from:
            value.type = ir.TensorType(self._kind)

    def _stored(self, tensor: ir.TensorProtocol, pieces: Iterator[Array]) -> ir.ExternalTensor:
        """Append `pieces` to `data`, as a tensor with the shape and name of `tensor`."""
        start = self._data.tell()
        for piece in pieces:
            self._data.write(self._narrow(str(tensor.name), piece).tobytes())
        end = self._data.tell()
        self._data.write(b"\0" * (-end % 64))
        return ir.ExternalTensor(
            Path(self._data.name).name, start, end - start, self._kind, name=str(tensor.name),
            shape=ir.Shape(sizes(tensor)), base_dir=self._path.parent,
        )  # fmt: skip

    def _narrow(self, name: str, piece: Array) -> Array:
        with np.errstate(over="ignore"):  # checked below
            narrow = piece.astype(self._dtype)
        if piece.size == 1:  # a bound: the largest number of a type
            most = np.array(ml_dtypes.finfo(self._dtype).max, self._dtype)  # type: ignore[no-untyped-call]
            return np.clip(narrow, -most, most) if np.isfinite(piece).all() else narrow
        if (np.isinf(narrow) & np.isfinite(piece)).any():
            raise EngineError(
                f"{self._path}: {name} is too large for {self._floats}; build with --floats bf16"
            )
        return narrow


def _pieces(tensor: ir.TensorProtocol, scales: bool) -> Iterator[Array]:
    """Yield a tensor in pieces; scales stay above zero, as TensorRT requires."""
    flat = numbers(tensor).reshape(-1)
    for start in range(0, flat.size, _PIECE_WEIGHTS):
        piece = flat[start : start + _PIECE_WEIGHTS]
        yield np.maximum(piece, _LEAST_FP16) if scales else piece


def _unpacked(values: ir.TensorProtocol, scales: ir.TensorProtocol) -> Iterator[Array]:
    """Yield [inputs, outputs] as floats, some blocks at a time."""
    integers, factors = numbers(values), numbers(scales)
    rows = max(1, _PIECE_WEIGHTS // (BLOCK_INPUTS * integers.shape[1]))
    for start in range(0, len(factors), rows):
        blocks = integers[start * BLOCK_INPUTS : (start + rows) * BLOCK_INPUTS].astype(np.float32)
        part = factors[start : start + rows].astype(np.float32)
        yield blocks * np.repeat(part, BLOCK_INPUTS, axis=0)


def _producer(value: ir.Value | None) -> ir.Node | None:
    return None if value is None else value.producer()
