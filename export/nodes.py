"""Construction of one graph in standard ONNX, node by node."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from edgespec import __version__
from edgespec.manifest import COMPAT_OPSET, MAIN_OPSET, Precisions
from export.weights import float_type

IR_VERSIONS = {MAIN_OPSET: 12, COMPAT_OPSET: 10}
"""IR version of files by opset: the newest that the oldest runtime of that opset reads."""
Shape = Sequence[int | str]


class NodeWriter:
    """A graph in construction. Every method that adds a node returns its output."""

    def __init__(self, precisions: Precisions, opset: int) -> None:
        self.precisions = precisions
        self.opset = opset
        self.dtype = float_type(precisions.layers)
        self.float = ir.DataType.from_numpy(np.dtype(self.dtype))
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

    def model(self, name: str) -> ir.Model:
        graph = ir.Graph(
            self._inputs,
            self._outputs,
            nodes=self._nodes,
            initializers=list(self._constants.values()),
            opset_imports={"": self.opset},
            name=name,
        )
        return ir.Model(
            graph,
            ir_version=IR_VERSIONS[self.opset],
            producer_name="edgespec",
            producer_version=__version__,
        )
