"""What one decoder is written with: the operators of opset 24, or plain ones of opset 21.

`export/graph.py` says what the decoder does and is the same for both; the parts that opset 24 has
an operator for (norm, activation, rotary positions, the write into the cache, attention) are asked
of the `Operators` of the graph's opset. Names, shapes and types of inputs and outputs do not depend
on it.
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
    """Those that `graph` is written with."""
    return _BY_OPSET[graph.opset](graph)
