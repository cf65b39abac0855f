"""The interface of the operators of every opset."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import NamedTuple

import onnx_ir as ir

from edgespec.architecture import Architecture
from export.nodes import NodeWriter


class Rows(NamedTuple):
    """The inputs that place the tokens of a batch in their slots, and the rotary tables."""

    positions: ir.Value
    """[batch, tokens]"""
    starts: ir.Value
    """[batch]: position of each row's first new key and value."""
    lengths: ir.Value
    """[batch]: starts + tokens."""
    cos: ir.Value
    """[context, head_dim / 2], like `sin`."""
    sin: ir.Value


class Layers(ABC):
    """Operations that all layers of a graph perform on the same rows. `name` names the result."""

    def __init__(self, graph: NodeWriter, rows: Rows) -> None:
        self.graph = graph
        self.rows = rows

    @abstractmethod
    def rotate(self, name: str, x: ir.Value) -> ir.Value:
        """Rotate `x` [batch, heads, tokens, head_dim] by its positions, half against half."""

    @abstractmethod
    def write(self, name: str, past: ir.Value, new: ir.Value) -> ir.Value:
        """Write `new` into `past` [batch, kv_heads, capacity, head_dim], from `starts` on.

        The write is in place if the graph's input and output are bound to the same memory.
        """

    @abstractmethod
    def attend(self, name: str, query: ir.Value, key: ir.Value, value: ir.Value) -> ir.Value:
        """Attend over the positions up to each token's own: [batch, heads, tokens, head_dim]."""


class Operators(ABC):
    """The operations of one opset. `name` names the result."""

    def __init__(self, graph: NodeWriter) -> None:
        self.graph = graph

    @abstractmethod
    def norm(self, name: str, x: ir.Value, weight: ir.Value, epsilon: float) -> ir.Value:
        """Add an RMS norm over the last axis, computed in fp32."""

    @abstractmethod
    def swish(self, name: str, x: ir.Value) -> ir.Value:
        """Add `x * sigmoid(x)`."""

    @abstractmethod
    def layers(self, rows: Rows, shapes: Architecture, *, exact: bool) -> Layers:
        """Add the nodes that the layers share.

        With `exact` the bits of the result do not depend on the number of threads, at some cost.
        """
