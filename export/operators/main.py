"""The decoder in the operators of opset 24."""

from __future__ import annotations

import onnx_ir as ir

from edgespec.architecture import Architecture
from export.operators.base import Layers, Operators, Rows


class MainLayers(Layers):
    """Layers with the operator `Attention`.

    With `nonpad_kv_seqlen` and `is_causal` it aligns its mask to the end of each row.
    """

    def rotate(self, name: str, x: ir.Value) -> ir.Value:
        rows = self.rows
        return self.graph.node("RotaryEmbedding", name, x, rows.cos, rows.sin, rows.positions)

    def write(self, name: str, past: ir.Value, new: ir.Value) -> ir.Value:
        return self.graph.node("TensorScatter", name, past, new, self.rows.starts, axis=2)

    def attend(self, name: str, query: ir.Value, key: ir.Value, value: ir.Value) -> ir.Value:
        lengths = self.rows.lengths
        return self.graph.node(
            "Attention", name, query, key, value, None, None, None, lengths, is_causal=1
        )


class MainOperators(Operators):
    """The operators of opset 24."""

    def norm(self, name: str, x: ir.Value, weight: ir.Value, epsilon: float) -> ir.Value:
        return self.graph.node("RMSNormalization", name, x, weight, axis=-1, epsilon=epsilon)

    def swish(self, name: str, x: ir.Value) -> ir.Value:
        return self.graph.node("Swish", name, x)

    def layers(self, rows: Rows, shapes: Architecture, *, exact: bool) -> Layers:  # noqa: ARG002
        return MainLayers(self.graph, rows)
