"""The parts of a decoder that depend on the opset: operators of opset 24, or plain ones of 21.

`export/graph.py` describes the decoder for both opsets. For the parts that have an operator in
opset 24 (norm, activation, rotary positions, the write into the cache, attention) it calls the
`Operators` of the graph's opset. Inputs and outputs have the same names, shapes and types in both.
"""

from __future__ import annotations

from edgespec.manifest import COMPAT_OPSET, MAIN_OPSET
from export.nodes import NodeWriter
from export.operators.base import Layers, Operators, Rows
from export.operators.main import MainOperators
from export.operators.plain import PlainOperators

__all__ = ["Layers", "Operators", "Rows", "operators"]

_BY_OPSET: dict[int, type[Operators]] = {MAIN_OPSET: MainOperators, COMPAT_OPSET: PlainOperators}


def operators(graph: NodeWriter) -> Operators:
    """Return the operators of the opset of `graph`."""
    return _BY_OPSET[graph.opset](graph)
