"""What the operators of every opset can write."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import NamedTuple

import onnx_ir as ir

from edgespec.architecture import Architecture
from export.nodes import NodeWriter


class Rows(NamedTuple):
    """The inputs that say where the tokens of a batch lie, and the rotary tables."""

    positions: ir.Value
    """[batch, tokens]"""
    starts: ir.Value
    """[batch]: where each row's new keys and values go."""
    lengths: ir.Value
    """[batch]: starts + tokens."""
    cos: ir.Value
    """[context, head_dim / 2], as `sin`."""
    sin: ir.Value


class Layers(ABC):
    """What all layers of a graph do with the same rows. `name` is that of the result."""

    def __init__(self, graph: NodeWriter, rows: Rows) -> None:
        self.graph = graph
        self.rows = rows

    @abstractmethod
    def rotate(self, name: str, x: ir.Value) -> ir.Value:
        """`x` [batch, heads, tokens, head_dim] turned by its positions, half against half."""

    @abstractmethod
    def write(self, name: str, past: ir.Value, new: ir.Value) -> ir.Value:
        """`past` [batch, kv_heads, capacity, head_dim] with `new` from `starts` on.

        In place where the graph's input and output are bound to the same memory.
        """

    @abstractmethod
    def attend(self, name: str, query: ir.Value, key: ir.Value, value: ir.Value) -> ir.Value:
        """[batch, heads, tokens, head_dim]: each token over the positions up to its own."""


class Operators(ABC):
    """`name` is that of the result."""

    def __init__(self, graph: NodeWriter) -> None:
        self.graph = graph

    @abstractmethod
    def norm(self, name: str, x: ir.Value, weight: ir.Value, epsilon: float) -> ir.Value:
        """RMS norm over the last axis, computed in fp32."""

    @abstractmethod
    def swish(self, name: str, x: ir.Value) -> ir.Value:
        """`x * sigmoid(x)`"""

    @abstractmethod
    def layers(self, rows: Rows, shapes: Architecture, *, exact: bool) -> Layers:
        """Adds what the layers share.

        `exact`: the bits may not depend on the number of threads, whatever that costs.
        """
