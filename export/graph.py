"""The decoder as a graph, written node by node in standard ONNX, opset 24.

One graph serves drafting, verifying, prefill and batches. Its inputs:

    input_ids | hidden.<first layer>   [batch, tokens] int64 | [batch, tokens, hidden]
    position_ids                       [batch, tokens] int64
    write_indices                      [batch] int64: where each row's new keys and values go
    kv_lengths                         [batch] int64: write_indices + tokens
    cache_key.<i>, cache_value.<i>     [batch, kv_heads, capacity, head_dim]
    select                             [N] int64, flat indices into batch * tokens (with a head)

and its outputs: the caches again (`….out`, written in place when bound to the same memory), and
`hidden.<last layer>`, or `features` after the final norm, or with a head `argmax` [N], `top_ids`
and `top_logits` [N, TOP], and `logits` [N, vocabulary].

`Attention` with `nonpad_kv_seqlen` and `is_causal` aligns its mask to each row's end, so rows of
different lengths share a batch, and pads on the right see and disturb nobody.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from edgespec import __version__
from edgespec.architecture import Architecture
from edgespec.manifest import Precisions
from engines.base import TOP
from export.quantise import BLOCK
from export.weights import Matrix, Quantised, WeightFolder, float_type

OPSET = 24
IR_VERSION = 12
_INT64 = ir.DataType.INT64
Shape = Sequence[int | str]


class GraphWriter:
    """Collects the nodes of one graph. Every method that adds a node returns its output."""

    def __init__(self, weights: WeightFolder, precisions: Precisions, file: str) -> None:
        self.weights = weights
        self.precisions = precisions
        self.dtype = float_type(precisions.layers)
        self.float = ir.DataType.from_numpy(np.dtype(self.dtype))
        self._file = file
        self._nodes: list[ir.Node] = []
        self._inputs: list[ir.Value] = []
        self._outputs: list[ir.Value] = []
        self._constants: dict[str, ir.Value] = {}

    def input(self, name: str, shape: Shape, dtype: ir.DataType) -> ir.Value:
        value = ir.Value(name=name, type=ir.TensorType(dtype), shape=ir.Shape(shape))
        self._inputs.append(value)
        return value

    def output(self, value: ir.Value, name: str, shape: Shape, dtype: ir.DataType) -> None:
        value.name = name
        value.type, value.shape = ir.TensorType(dtype), ir.Shape(shape)
        self._outputs.append(value)

    def node(self, kind: str, name: str, *inputs: ir.Value | None, **attributes: Any) -> ir.Value:
        return self.nodes(kind, name, 1, *inputs, **attributes)[0]

    def nodes(
        self, kind: str, name: str, outputs: int, *inputs: ir.Value | None, **attributes: Any
    ) -> Sequence[ir.Value]:
        node = ir.node(kind, list(inputs), attributes, num_outputs=outputs, name=name)
        for number, value in enumerate(node.outputs):
            value.name = f"{name}.{number}" if outputs > 1 else name
        self._nodes.append(node)
        return node.outputs

    def constant(self, name: str, value: npt.NDArray[Any] | ir.ExternalTensor) -> ir.Value:
        if name not in self._constants:
            tensor = value if isinstance(value, ir.ExternalTensor) else ir.Tensor(value, name=name)
            self._constants[name] = ir.Value(
                name=name, const_value=tensor, shape=tensor.shape, type=ir.TensorType(tensor.dtype)
            )
        return self._constants[name]

    def matrix(self, name: str, matrix: Matrix) -> ir.Value:
        if not isinstance(matrix, Quantised):
            return self.constant(name, matrix)
        values = self.constant(f"{name}.values", matrix.values)
        scales = self.constant(f"{name}.scales", matrix.scales)
        return self.node(
            "DequantizeLinear", f"{name}.float", values, scales, axis=0, block_size=BLOCK
        )

    def linear(self, name: str, x: ir.Value) -> ir.Value:
        """`x @ weight.T`, and the bias where the checkpoint has one."""
        stored = self.weights.linear(self._file, f"{name}.weight", self.precisions.layers)
        y = self.node("MatMul", name, x, self.matrix(f"{name}.weight", stored))
        if self.weights.has(f"{name}.bias"):
            bias = self.constant(f"{name}.bias", self.weights.vector(f"{name}.bias", self.dtype))
            y = self.node("Add", f"{name}.biased", y, bias)
        return y

    def norm(self, name: str, x: ir.Value, epsilon: float, output: str = "") -> ir.Value:
        """RMS norm over the last axis, computed in fp32."""
        weight = self.constant(f"{name}.weight", self.weights.vector(f"{name}.weight", self.dtype))
        return self.node("RMSNormalization", output or name, x, weight, axis=-1, epsilon=epsilon)

    def model(self, name: str) -> ir.Model:
        graph = ir.Graph(
            self._inputs,
            self._outputs,
            nodes=self._nodes,
            initializers=list(self._constants.values()),
            opset_imports={"": OPSET},
            name=name,
        )
        return ir.Model(
            graph,
            ir_version=IR_VERSION,
            producer_name="edgespec",
            producer_version=__version__,
        )


def decoder(
    weights: WeightFolder,
    precisions: Precisions,
    context: int,
    layers: range,
    *,
    file: str,
    with_head: bool = False,
) -> ir.Model:
    """Layers `[layers.start, layers.stop)`, with the embedding before layer 0 and the last norm."""
    shapes = weights.checkpoint.architecture
    graph = GraphWriter(weights, precisions, file)
    first, last = layers.start == 0, layers.stop == shapes.layers
    if first:
        ids = graph.input("input_ids", ["batch", "tokens"], _INT64)
    else:
        hidden = graph.input(
            f"hidden.{layers.start}", ["batch", "tokens", shapes.hidden], graph.float
        )
    rows = {
        "positions": graph.input("position_ids", ["batch", "tokens"], _INT64),
        "starts": graph.input("write_indices", ["batch"], _INT64),
        "lengths": graph.input("kv_lengths", ["batch"], _INT64),
    }
    cos, sin = weights.rotary(context, graph.dtype)
    rows |= {"cos": graph.constant("rotary.cos", cos), "sin": graph.constant("rotary.sin", sin)}
    if first:
        hidden = _embed(graph, ids)
    for layer in layers:
        prefix = f"model.layers.{layer}"
        normed = graph.norm(f"{prefix}.input_layernorm", hidden, shapes.norm_epsilon)
        attended = _attention(graph, shapes, layer, normed, rows)
        hidden = graph.node("Add", f"{prefix}.attended", hidden, attended)
        normed = graph.norm(f"{prefix}.post_attention_layernorm", hidden, shapes.norm_epsilon)
        hidden = graph.node("Add", f"{prefix}.hidden", hidden, _feed_forward(graph, layer, normed))
    shape: Shape = ["batch", "tokens", shapes.hidden]
    if not last:
        graph.output(hidden, f"hidden.{layers.stop}", shape, graph.float)
        return graph.model(file)
    features = graph.norm("model.norm", hidden, shapes.norm_epsilon)
    if with_head:
        _head(graph, features)
    else:
        graph.output(features, "features", shape, graph.float)
    return graph.model(file)


def exit_head(weights: WeightFolder, precisions: Precisions, layer: int, *, file: str) -> ir.Model:
    """Hidden states after `layer` layers -> features, which the shared head reads."""
    shapes = weights.checkpoint.architecture
    graph = GraphWriter(weights, precisions, file)
    shape: Shape = ["batch", "tokens", shapes.hidden]
    hidden = graph.input(f"hidden.{layer}", shape, graph.float)
    features = graph.norm("model.norm", hidden, shapes.norm_epsilon)
    graph.output(features, "features", shape, graph.float)
    return graph.model(file)


def head(weights: WeightFolder, precisions: Precisions, *, file: str) -> ir.Model:
    """Features -> choices, for the target's own end and for every exit head."""
    graph = GraphWriter(weights, precisions, file)
    hidden = weights.checkpoint.architecture.hidden
    _head(graph, graph.input("features", ["batch", "tokens", hidden], graph.float))
    return graph.model(file)


def _embed(graph: GraphWriter, ids: ir.Value) -> ir.Value:
    name = "model.embed_tokens.weight"
    precision = graph.precisions.embedding
    table = graph.constant(f"{name}.{precision}", graph.weights.table(name, precision))
    hidden = graph.node("Gather", "model.embed_tokens", table, ids, axis=0)
    if table.dtype == graph.float:
        return hidden
    return graph.node("Cast", "model.embed_tokens.cast", hidden, to=int(graph.float))


def _attention(
    graph: GraphWriter, shapes: Architecture, layer: int, x: ir.Value, rows: dict[str, ir.Value]
) -> ir.Value:
    prefix = f"model.layers.{layer}.self_attn"

    def heads(letter: str, count: int) -> ir.Value:
        split = graph.constant(f"split.{count}", np.array([0, 0, count, shapes.head_dim]))
        y = graph.node(
            "Reshape", f"{prefix}.{letter}_split", graph.linear(f"{prefix}.{letter}_proj", x), split
        )
        if shapes.qk_norm and letter != "v":
            y = graph.norm(f"{prefix}.{letter}_norm", y, shapes.norm_epsilon)
        return graph.node("Transpose", f"{prefix}.{letter}_heads", y, perm=[0, 2, 1, 3])

    def rotate(letter: str, y: ir.Value) -> ir.Value:
        return graph.node(
            "RotaryEmbedding",
            f"{prefix}.{letter}_rotated",
            y,
            rows["cos"],
            rows["sin"],
            rows["positions"],
        )

    def cache(kind: str, new: ir.Value) -> ir.Value:
        shape: Shape = ["batch", shapes.kv_heads, "capacity", shapes.head_dim]
        past = graph.input(f"cache_{kind}.{layer}", shape, graph.float)
        written = graph.node(
            "TensorScatter", f"cache_{kind}.{layer}.out", past, new, rows["starts"], axis=2
        )
        graph.output(written, f"cache_{kind}.{layer}.out", shape, graph.float)
        return written

    query = rotate("q", heads("q", shapes.heads))
    key = cache("key", rotate("k", heads("k", shapes.kv_heads)))
    value = cache("value", heads("v", shapes.kv_heads))
    attended = graph.node(
        "Attention", prefix, query, key, value, None, None, None, rows["lengths"], is_causal=1
    )
    turned = graph.node("Transpose", f"{prefix}.turned", attended, perm=[0, 2, 1, 3])
    join = graph.constant("join", np.array([0, 0, shapes.heads * shapes.head_dim]))
    return graph.linear(f"{prefix}.o_proj", graph.node("Reshape", f"{prefix}.joined", turned, join))


def _feed_forward(graph: GraphWriter, layer: int, x: ir.Value) -> ir.Value:
    prefix = f"model.layers.{layer}.mlp"
    gate = graph.node("Swish", f"{prefix}.gate", graph.linear(f"{prefix}.gate_proj", x))
    gated = graph.node("Mul", f"{prefix}.gated", gate, graph.linear(f"{prefix}.up_proj", x))
    return graph.linear(f"{prefix}.down_proj", gated)


def _head(graph: GraphWriter, features: ir.Value) -> None:
    shapes = graph.weights.checkpoint.architecture
    select = graph.input("select", ["selected"], _INT64)
    flat = graph.constant("flat", np.array([-1, shapes.hidden]))
    rows = graph.node("Reshape", "head.flat", features, flat)
    picked = graph.node("Gather", "head.picked", rows, select, axis=0)
    name = "model.embed_tokens.weight" if shapes.tied else "lm_head.weight"
    precision = graph.precisions.head
    stored = graph.weights.head(name, precision)
    if isinstance(stored, Quantised):
        logits = graph.node("MatMul", "logits", picked, graph.matrix(f"{name}.head", stored))
    else:
        table = graph.constant(f"{name}.{precision}", stored)
        logits = graph.node("Gemm", "logits", picked, table, transB=1)
    best = graph.node("ArgMax", "argmax", logits, axis=-1, keepdims=0)
    top = min(TOP, shapes.vocabulary)
    count = graph.constant("top", np.array([top]))
    top_logits, top_ids = graph.nodes("TopK", "top", 2, logits, count, axis=-1)
    graph.output(best, "argmax", ["selected"], _INT64)
    graph.output(top_ids, "top_ids", ["selected", top], _INT64)
    graph.output(top_logits, "top_logits", ["selected", top], graph.float)
    graph.output(logits, "logits", ["selected", shapes.vocabulary], graph.float)
