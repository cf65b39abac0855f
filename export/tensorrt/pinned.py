"""Fixing the slot capacity of a graph for TensorRT.

TensorRT's KV update needs a static capacity. It is fixed in a copy; the graph of the bundle stays
symbolic.

TensorRT's ONNX parser drops the input `nonpad_kv_seqlen` of `Attention` (tensorrt_rtx 1.7.1 logs
«Unused Input: kv_lengths») and would attend over the complete slot. The copy therefore computes the
same mask as an input: token `t` of a row attends to positions up to `kv_lengths - tokens + t`.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir


def pin(model: ir.Model, capacity: int) -> None:
    """Fix the capacity, and replace the lengths of every `Attention` by a mask."""
    for value in [*model.graph.inputs, *model.graph.outputs]:
        value.shape = ir.Shape([capacity if dim == "capacity" else dim for dim in dims(value)])
    attending = [
        node
        for node in model.graph
        if node.op_type == "Attention" and len(node.inputs) > 6 and node.inputs[6] is not None
    ]
    if attending:
        lengths = attending[0].inputs[6]
        assert lengths is not None
        mask = _mask(model.graph, lengths, capacity)
        for node in attending:
            node.replace_input_with(6, None)
            node.replace_input_with(3, mask)
            node.attributes["is_causal"] = ir.AttrInt64("is_causal", 0)


def _mask(graph: ir.Graph, lengths: ir.Value, capacity: int) -> ir.Value:
    """Return the mask of each new token, [batch, 1, tokens, capacity]."""
    positions = next(value for value in graph.inputs if value.name == "position_ids")
    nodes: list[ir.Node] = []

    def node(kind: str, name: str, *inputs: ir.Value, **attributes: Any) -> ir.Value:
        made = ir.node(kind, list(inputs), attributes, name=f"mask.{name}")
        made.outputs[0].name = f"mask.{name}"
        nodes.append(made)
        return made.outputs[0]

    def constant(name: str, value: npt.NDArray[Any]) -> ir.Value:
        return initializer(graph, f"mask.{name}", ir.Tensor(value, name=f"mask.{name}"))

    tokens = node("Shape", "tokens", positions, start=1, end=2)
    steps = node(
        "Range",
        "steps",
        constant("start", np.array(0)),
        node("Squeeze", "end", tokens),
        constant("step", np.array(1)),
    )
    first = node(
        "Unsqueeze", "column", node("Sub", "first", lengths, tokens), constant("one", np.array([1]))
    )
    last = node(
        "Unsqueeze", "rows", node("Add", "last", first, steps), constant("heads", np.array([1, 3]))
    )
    slots = constant("positions", np.arange(capacity).reshape(1, 1, 1, capacity))
    seen = node("LessOrEqual", "seen", slots, last)
    graph.insert_before(graph[0], nodes)
    return seen


def initializer(graph: ir.Graph, name: str, tensor: ir.TensorProtocol) -> ir.Value:
    """Add a constant to the graph."""
    value = ir.Value(
        name=name,
        const_value=tensor,
        shape=ir.Shape(sizes(tensor)),
        type=ir.TensorType(tensor.dtype),
    )
    graph.register_initializer(value)
    return value


def sizes(tensor: ir.TensorProtocol) -> tuple[int, ...]:
    return tuple(tensor.shape.numpy())


def dims(value: ir.Value) -> list[int | str]:
    assert value.shape is not None
    return [dim if isinstance(dim, int) else str(dim.value) for dim in value.shape]
