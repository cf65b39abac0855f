"""The decoder as a graph, written node by node in standard ONNX.

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

The mask is aligned to the end of each row, so rows of different lengths share a batch. Padding on
the right does not change any other position. `export/operators` has the parts that depend on the
opset.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from edgespec.architecture import Architecture
from edgespec.checkpoint import BLOCK_INPUTS
from edgespec.manifest import MAIN_OPSET, Precisions
from engines.base import TOP
from export.nodes import NodeWriter, Shape
from export.operators import Layers, Rows, operators
from export.weights import Matrix, QuantisedTensors, WeightFolder

_INT64 = ir.DataType.INT64


class GraphWriter(NodeWriter):
    """A graph in construction, with weights from a checkpoint."""

    def __init__(
        self,
        weights: WeightFolder,
        precisions: Precisions,
        opset: int,
        file: str,
        *,
        join: bool = False,
    ) -> None:
        """`join`: projections of the same inputs are one product."""
        super().__init__(precisions, opset)
        self.operators = operators(self)
        self.weights = weights
        self._file = file
        self._join = join

    def matrix(self, name: str, matrix: Matrix) -> ir.Value:
        if not isinstance(matrix, QuantisedTensors):
            return self.constant(name, matrix)
        values = self.constant(f"{name}.values", matrix.values)
        scales = self.constant(f"{name}.scales", matrix.scales)
        return self.node(
            "DequantizeLinear", f"{name}.float", values, scales, axis=0, block_size=BLOCK_INPUTS
        )

    def linear(self, name: str, x: ir.Value) -> ir.Value:
        """Add `x @ weight.T`, plus the bias if the checkpoint has one."""
        stored = self.weights.linear(self._file, f"{name}.weight", self.precisions.layers)
        return self._product(name, x, stored, [name])

    def linears(self, name: str, parts: Sequence[str], x: ir.Value) -> Sequence[ir.Value]:
        """Add several projections of `x`: one product `name` and a split, if they are joined."""
        if not self._join:
            return [self.linear(part, x) for part in parts]
        names = [f"{part}.weight" for part in parts]
        stored = self.weights.joined(self._file, f"{name}.weight", names, self.precisions.layers)
        if len(stored) > 1:
            products = zip(parts, stored, strict=True)
            return [self._product(part, x, one, [part]) for part, one in products]
        sizes = np.array([self.weights.checkpoint.shape(part)[0] for part in names])
        whole = self._product(name, x, stored[0], parts)
        return self.nodes(
            "Split",
            f"{name}.parts",
            len(parts),
            whole,
            self.constant(f"{name}.sizes", sizes),
            axis=-1,
        )

    def _product(self, name: str, x: ir.Value, stored: Matrix, parts: Sequence[str]) -> ir.Value:
        """Add a product with a stored matrix, and the biases of the parts that it consists of."""
        y = self.node("MatMul", name, x, self.matrix(f"{name}.weight", stored))
        if not any(self.weights.has(f"{part}.bias") for part in parts):
            return y
        bias = self.constant(f"{name}.bias", np.concatenate([self._bias(part) for part in parts]))
        return self.node("Add", f"{name}.biased", y, bias)

    def _bias(self, name: str) -> npt.NDArray[Any]:
        """Return a projection's bias; zeros if it has none."""
        if self.weights.has(f"{name}.bias"):
            return self.weights.vector(f"{name}.bias", self.dtype)
        return np.zeros(self.weights.checkpoint.shape(f"{name}.weight")[0], self.dtype)

    def norm(self, name: str, x: ir.Value, epsilon: float) -> ir.Value:
        """Add an RMS norm over the last axis, computed in fp32."""
        weight = self.constant(f"{name}.weight", self.weights.vector(f"{name}.weight", self.dtype))
        return self.operators.norm(name, x, weight, epsilon)


def decoder(
    weights: WeightFolder,
    precisions: Precisions,
    context: int,
    layers: range,
    *,
    file: str,
    opset: int = MAIN_OPSET,
    with_head: bool = False,
) -> ir.Model:
    """Build the graph of layers `[layers.start, layers.stop)`.

    The first layer is preceded by the embedding, the last one followed by the final norm. A graph
    `with_head` is a draft's. The cloud verifies its tokens, so speed matters more there than equal
    bits in every configuration. Its projections of the same inputs are one product.
    """
    shapes = weights.checkpoint.architecture
    graph = GraphWriter(weights, precisions, opset, file, join=with_head)
    first, last = layers.start == 0, layers.stop == shapes.layers
    if first:
        ids = graph.input("input_ids", ["batch", "tokens"], _INT64)
    else:
        hidden = graph.input(
            f"hidden.{layers.start}", ["batch", "tokens", shapes.hidden], graph.float
        )
    rows = _rows(graph, context)
    if first:
        hidden = _embed(graph, ids)
    shared = graph.operators.layers(rows, shapes, exact=not with_head)
    for layer in layers:
        hidden = _layer(graph, shapes, layer, hidden, shared)
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


def head(
    weights: WeightFolder, precisions: Precisions, *, file: str, opset: int = MAIN_OPSET
) -> ir.Model:
    """Build the graph from features to choices, for the target's end and for every exit head."""
    graph = GraphWriter(weights, precisions, opset, file)
    hidden = weights.checkpoint.architecture.hidden
    _head(graph, graph.input("features", ["batch", "tokens", hidden], graph.float))
    return graph.model(file)


def _rows(graph: GraphWriter, context: int) -> Rows:
    positions = graph.input("position_ids", ["batch", "tokens"], _INT64)
    starts = graph.input("write_indices", ["batch"], _INT64)
    lengths = graph.input("kv_lengths", ["batch"], _INT64)
    cos, sin = graph.weights.rotary(context, graph.dtype)
    tables = graph.constant("rotary.cos", cos), graph.constant("rotary.sin", sin)
    return Rows(positions, starts, lengths, *tables)


def _embed(graph: GraphWriter, ids: ir.Value) -> ir.Value:
    name = "model.embed_tokens.weight"
    precision = graph.precisions.embedding
    table = graph.constant(f"{name}.{precision}", graph.weights.table(name, precision))
    hidden = graph.node("Gather", "model.embed_tokens", table, ids, axis=0)
    if table.dtype == graph.float:
        return hidden
    return graph.node("Cast", "model.embed_tokens.cast", hidden, to=int(graph.float))


def _layer(
    graph: GraphWriter, shapes: Architecture, layer: int, hidden: ir.Value, shared: Layers
) -> ir.Value:
    prefix = f"model.layers.{layer}"
    normed = graph.norm(f"{prefix}.input_layernorm", hidden, shapes.norm_epsilon)
    attended = _attention(graph, shapes, layer, normed, shared)
    hidden = graph.node("Add", f"{prefix}.attended", hidden, attended)
    normed = graph.norm(f"{prefix}.post_attention_layernorm", hidden, shapes.norm_epsilon)
    return graph.node("Add", f"{prefix}.hidden", hidden, _feed_forward(graph, layer, normed))


def _attention(
    graph: GraphWriter, shapes: Architecture, layer: int, x: ir.Value, shared: Layers
) -> ir.Value:
    prefix = f"model.layers.{layer}.self_attn"

    projected = graph.linears(f"{prefix}.qkv_proj", [f"{prefix}.{c}_proj" for c in "qkv"], x)
    flat = dict(zip("qkv", projected, strict=True))

    def heads(letter: str, count: int) -> ir.Value:
        split = graph.constant(f"split.{count}", np.array([0, 0, count, shapes.head_dim]))
        y = graph.node("Reshape", f"{prefix}.{letter}_split", flat[letter], split)
        if shapes.qk_norm and letter != "v":
            y = graph.norm(f"{prefix}.{letter}_norm", y, shapes.norm_epsilon)
        return graph.node("Transpose", f"{prefix}.{letter}_heads", y, perm=[0, 2, 1, 3])

    def cache(kind: str, new: ir.Value) -> ir.Value:
        shape: Shape = ["batch", shapes.kv_heads, "capacity", shapes.head_dim]
        past = graph.input(f"cache_{kind}.{layer}", shape, graph.float)
        written = shared.write(f"cache_{kind}.{layer}.out", past, new)
        graph.output(written, f"cache_{kind}.{layer}.out", shape, graph.float)
        return written

    query = shared.rotate(f"{prefix}.q_rotated", heads("q", shapes.heads))
    key = cache("key", shared.rotate(f"{prefix}.k_rotated", heads("k", shapes.kv_heads)))
    value = cache("value", heads("v", shapes.kv_heads))
    attended = shared.attend(prefix, query, key, value)
    turned = graph.node("Transpose", f"{prefix}.turned", attended, perm=[0, 2, 1, 3])
    join = graph.constant("join", np.array([0, 0, shapes.heads * shapes.head_dim]))
    return graph.linear(f"{prefix}.o_proj", graph.node("Reshape", f"{prefix}.joined", turned, join))


def _feed_forward(graph: GraphWriter, layer: int, x: ir.Value) -> ir.Value:
    prefix = f"model.layers.{layer}.mlp"
    gate, up = graph.linears(
        f"{prefix}.gate_up_proj", [f"{prefix}.gate_proj", f"{prefix}.up_proj"], x
    )
    gate = graph.operators.swish(f"{prefix}.gate", gate)
    gated = graph.node("Mul", f"{prefix}.gated", gate, up)
    return graph.linear(f"{prefix}.down_proj", gated)


def _head(graph: GraphWriter, features: ir.Value) -> None:
    shapes = graph.weights.checkpoint.architecture
    select = graph.input("select", ["selected"], _INT64)
    flat = graph.constant("flat", np.array([-1, shapes.hidden]))
    rows = graph.node("Reshape", "head.flat", features, flat)
    picked = graph.node("Gather", "head.picked", rows, select, axis=0)
    logits = _logits(graph, picked)
    kept = graph.weights.checkpoint.kept_ids
    best = graph.node("ArgMax", "best", logits, axis=-1, keepdims=0)
    top = min(TOP, shapes.vocabulary if kept is None else len(kept))
    count = graph.constant("top", np.array([top]))
    top_logits, top_ids = graph.nodes("TopK", "top", 2, logits, count, axis=-1)
    if kept is not None:
        ids = graph.constant("kept_ids", kept)
        best = graph.node("Gather", "best.kept", ids, best, axis=0)
        top_ids = graph.node("Gather", "top.kept", ids, top_ids, axis=0)
        logits = _spread(graph, logits, kept)
    graph.output(best, "argmax", ["selected"], _INT64)
    graph.output(top_ids, "top_ids", ["selected", top], _INT64)
    graph.output(top_logits, "top_logits", ["selected", top], graph.float)
    graph.output(logits, "logits", ["selected", shapes.vocabulary], graph.float)


def _logits(graph: GraphWriter, rows: ir.Value) -> ir.Value:
    """Map `rows` [N, hidden] to [N, rows of the head]; a trimmed head has fewer rows."""
    checkpoint = graph.weights.checkpoint
    name = "model.embed_tokens.weight" if checkpoint.architecture.tied else "lm_head.weight"
    precision = graph.precisions.head
    stored = graph.weights.head(name, precision)
    if isinstance(stored, QuantisedTensors):
        return graph.node("MatMul", "head", rows, graph.matrix(f"{name}.head", stored))
    part = precision if checkpoint.kept_ids is None else f"kept.{precision}"
    return graph.node("Gemm", "head", rows, graph.constant(f"{name}.{part}", stored), transB=1)


def _spread(graph: GraphWriter, logits: ir.Value, kept: npt.NDArray[np.int64]) -> ir.Value:
    """Map logits of the kept ids to logits of the full vocabulary, with -inf for all other ids.

    `GatherElements` over repeated places takes a quarter of the time of `Gather` over an axis in
    ONNX Runtime (33 against 134 µs for 16384 of 49152 ids).
    """
    size = graph.weights.checkpoint.architecture.vocabulary
    places = np.full((1, size), len(kept), np.int64)
    places[0, kept] = np.arange(len(kept))
    padded = graph.node(
        "Pad",
        "spread.padded",
        logits,
        graph.constant("spread.pads", np.array([0, 0, 0, 1])),
        graph.constant("spread.nothing", np.array(-np.inf, graph.dtype)),
    )
    rows = graph.node("Shape", "spread.rows", logits, start=0, end=1)
    columns = graph.constant("spread.columns", np.array([size]))
    shape = graph.node("Concat", "spread.shape", rows, columns, axis=0)
    index = graph.node("Expand", "spread.index", graph.constant("spread.places", places), shape)
    return graph.node("GatherElements", "spread", padded, index, axis=1)
