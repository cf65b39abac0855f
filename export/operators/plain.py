"""The decoder in operators that every runtime since opset 21 has.

They are for ONNX Runtime up to 1.24 and TensorRT 10, which lack `TensorScatter` and `Attention`
over a cache with lengths. Values that depend only on the rows (cosines, places to write, the mask)
are computed once per graph. ONNX Runtime fuses these forms when it loads a graph: the norm into
`SimplifiedLayerNormalization`, the activation into `QuickGelu`, and scale, transposed keys and
product into one `FusedMatMul`, which reads the cache in place.
"""

from __future__ import annotations

import math

import numpy as np
import onnx_ir as ir

from edgespec.architecture import Architecture
from export.nodes import NodeWriter
from export.operators.base import Layers, Operators, Rows

_FLOAT = ir.DataType.FLOAT
MAX_BLOCK_POSITIONS = 256


def positions_of_block(head_dim: int) -> int:
    """Return the divisor of an exact graph's capacity (see `PlainLayers._in_blocks`)."""
    return MAX_BLOCK_POSITIONS if head_dim <= 64 else MAX_BLOCK_POSITIONS // 2


class PlainOperators(Operators):
    """Operators of opset 21."""

    def norm(self, name: str, x: ir.Value, weight: ir.Value, epsilon: float) -> ir.Value:
        graph = self.graph
        half = graph.float != _FLOAT
        wide = graph.node("Cast", f"{name}.wide", x, to=int(_FLOAT)) if half else x
        two = graph.constant("two", np.array(2, np.float32))
        square = graph.node("Pow", f"{name}.square", wide, two)
        last = graph.constant("last_axis", np.array([-1]))
        mean = graph.node("ReduceMean", f"{name}.mean", square, last, keepdims=1)
        floor = graph.constant(f"epsilon.{epsilon}", np.array(epsilon, np.float32))
        above = graph.node("Add", f"{name}.above", mean, floor)
        root = graph.node("Sqrt", f"{name}.root", above)
        unit = graph.node("Div", f"{name}.unit", wide, root)
        if half:
            unit = graph.node("Cast", f"{name}.narrow", unit, to=int(graph.float))
        return graph.node("Mul", name, unit, weight)

    def swish(self, name: str, x: ir.Value) -> ir.Value:
        return self.graph.node("Mul", name, x, self.graph.node("Sigmoid", f"{name}.sigmoid", x))

    def layers(self, rows: Rows, shapes: Architecture, *, exact: bool) -> Layers:
        return PlainLayers(self.graph, rows, shapes, exact=exact)


class PlainLayers(Layers):
    """Layers with attention as products and a softmax."""

    def __init__(self, graph: NodeWriter, rows: Rows, shapes: Architecture, *, exact: bool) -> None:
        super().__init__(graph, rows)
        self._shapes, self._exact = shapes, exact
        self._cos, self._sin = self._angles()
        self._tokens = graph.node("Shape", "rows.tokens", rows.positions, start=1, end=2)
        self._steps = self._range("rows.steps", self._tokens, [1, 1, -1, 1])
        self._places = self._written()
        self._mask: ir.Value | None = None

    def rotate(self, name: str, x: ir.Value) -> ir.Value:
        graph = self.graph
        left, right = graph.nodes("Split", f"{name}.half", 2, x, axis=-1, num_outputs=2)
        swapped = graph.node("Concat", f"{name}.swapped", right, left, axis=-1)
        straight = graph.node("Mul", f"{name}.straight", x, self._cos)
        across = graph.node("Mul", f"{name}.across", swapped, self._sin)
        return graph.node("Add", name, straight, across)

    def write(self, name: str, past: ir.Value, new: ir.Value) -> ir.Value:
        """Write with `ScatterND`.

        ONNX Runtime copies all of `past` only if the output has another buffer
        (onnxruntime/core/providers/cpu/tensor/scatter_nd.cc).
        """
        return self.graph.node("ScatterND", name, past, self._places, new)

    def attend(self, name: str, query: ir.Value, key: ir.Value, value: ir.Value) -> ir.Value:
        """Attend with all queries that share keys and values as rows of one product."""
        graph, shapes = self.graph, self._shapes
        fold = graph.constant("fold", np.array([0, shapes.kv_heads, -1, shapes.head_dim]))
        folded = graph.node("Reshape", f"{name}.folded", query, fold)
        factor = graph.constant("scale", np.array(1 / math.sqrt(shapes.head_dim), graph.dtype))
        scaled = graph.node("Mul", f"{name}.scaled", folded, factor)
        turned = graph.node("Transpose", f"{name}.keys", key, perm=[0, 1, 3, 2])
        scores = graph.node("MatMul", f"{name}.scores", scaled, turned)
        nothing = graph.constant("unseen", np.array(np.finfo(graph.dtype).min, graph.dtype))
        kept = graph.node("Where", f"{name}.kept", self._seen(key), scores, nothing)
        weights = graph.node("Softmax", f"{name}.weights", kept, axis=-1)
        if self._exact:
            mixed = self._in_blocks(f"{name}.mixed", weights, value)
        else:
            mixed = graph.node("MatMul", f"{name}.mixed", weights, value)
        unfold = graph.constant("unfold", np.array([0, shapes.heads, -1, shapes.head_dim]))
        return graph.node("Reshape", name, mixed, unfold)

    def _in_blocks(self, name: str, weights: ir.Value, value: ir.Value) -> ir.Value:
        """Add `weights @ value` as a sum of products over blocks of positions.

        In one product, ONNX Runtime sums groups of positions whose size depends on the columns per
        thread (`MlasSgemmOperation` in onnxruntime/core/mlas/lib/sgemm.cpp), so its bits depend on
        the number of threads. The bits of a block do not, and they equal those of `Attention`.
        """
        graph, width = self.graph, self._shapes.head_dim
        size = positions_of_block(width)
        cuts = graph.constant("blocks.of_weights", np.array([0, 0, 0, -1, size]))
        cut = graph.node("Reshape", f"{name}.cut", weights, cuts)
        blocks = graph.node("Transpose", f"{name}.blocks", cut, perm=[0, 1, 3, 2, 4])
        rows = graph.constant("blocks.of_values", np.array([0, 0, -1, size, width]))
        values = graph.node("Reshape", f"{name}.values", value, rows)
        parts = graph.node("MatMul", f"{name}.parts", blocks, values)
        axis = graph.constant("blocks.axis", np.array([2]))
        return graph.node("ReduceSum", name, parts, axis, keepdims=0)

    def _angles(self) -> tuple[ir.Value, ir.Value]:
        """Return cosines and sines [batch, 1, tokens, head_dim], with the left sines negated."""
        graph, rows = self.graph, self.rows
        heads = graph.constant("heads_axis", np.array([1]))

        def gathered(name: str, table: ir.Value) -> ir.Value:
            found = graph.node("Gather", f"{name}.rows", table, rows.positions, axis=0)
            return graph.node("Unsqueeze", f"{name}.heads", found, heads)

        cos, sin = gathered("rotary.cos", rows.cos), gathered("rotary.sin", rows.sin)
        left = graph.node("Neg", "rotary.sin.left", sin)
        return (
            graph.node("Concat", "rotary.cos.both", cos, cos, axis=-1),
            graph.node("Concat", "rotary.sin.both", left, sin, axis=-1),
        )

    def _written(self) -> ir.Value:
        """Return (row, head, position) of new keys and values, [batch, kv_heads, tokens, 3]."""
        graph, heads = self.graph, self._shapes.kv_heads
        batch = graph.node("Shape", "rows.batch", self.rows.positions, start=0, end=1)
        count = graph.constant("rows.heads", np.array([heads]))
        one = graph.constant("one", np.array([1]))
        shape = graph.node("Concat", "places.shape", batch, count, self._tokens, one, axis=0)
        first = self._column("rows.starts", self.rows.starts)
        parts = {
            "row": self._range("rows.numbers", batch, [-1, 1, 1, 1]),
            "head": graph.constant("places.heads", np.arange(heads).reshape(1, heads, 1, 1)),
            "position": graph.node("Add", "rows.positions", first, self._steps),
        }
        spread = [graph.node("Expand", f"places.{k}", part, shape) for k, part in parts.items()]
        return graph.node("Concat", "places", *spread, axis=-1)

    def _seen(self, key: ir.Value) -> ir.Value:
        """Return the mask of visible positions, [batch, 1, group * tokens, capacity] bool.

        Scores of other positions are replaced, not added to, because rows past the end of the cache
        may hold numbers so large that their scores are not finite.
        """
        if self._mask is None:
            graph, shapes = self.graph, self._shapes
            capacity = graph.node("Shape", "capacity", key, start=2, end=3)
            columns = self._range("columns", capacity, [1, 1, 1, -1])
            past = graph.node("Sub", "rows.past", self.rows.lengths, self._tokens)
            last = graph.node("Add", "rows.last", self._column("rows.first", past), self._steps)
            one = graph.node("LessOrEqual", "seen.one", columns, last)
            group = np.array([1, 1, shapes.heads // shapes.kv_heads, 1])
            self._mask = graph.node("Tile", "seen", one, graph.constant("seen.group", group))
        return self._mask

    def _column(self, name: str, x: ir.Value) -> ir.Value:
        """[batch] -> [batch, 1, 1, 1]"""
        shape = self.graph.constant("column", np.array([-1, 1, 1, 1]))
        return self.graph.node("Reshape", name, x, shape)

    def _range(self, name: str, size: ir.Value, shape: list[int]) -> ir.Value:
        """Return the numbers from 0 to `size` [1], exclusive, in `shape`."""
        graph = self.graph
        zero, one = graph.constant("start", np.array(0)), graph.constant("step", np.array(1))
        end = graph.node("Squeeze", f"{name}.size", size)
        numbers = graph.node("Range", f"{name}.flat", zero, end, one)
        return graph.node(
            "Reshape", name, numbers, graph.constant(f"{name}.shape", np.array(shape))
        )
