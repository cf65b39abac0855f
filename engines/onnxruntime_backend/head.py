"""The graph that ends a step: its choices for the selected tokens, in host memory."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from engines.base import HEAD_OUTPUTS
from engines.onnxruntime_backend.graph import Graph, bind
from engines.outputs import KEPT_TOKENS, Arrays, OutputMemory, Outputs


def output_memory(graph: Graph) -> OutputMemory:
    """Returns memory for the outputs of a graph with a head, in the order of `HEAD_OUTPUTS`."""

    def arrays(tokens: int) -> Arrays:
        return [
            np.empty((tokens, *graph.outputs[name].shape[1:]), graph.dtype(name))
            for name in HEAD_OUTPUTS
        ]

    return OutputMemory(arrays)


class BoundHead:
    """A graph with a head, bound to buffers for some number of selected tokens."""

    def __init__(self, graph: Graph, binding: Any, memory: OutputMemory) -> None:
        """`binding` has the graph's other inputs and outputs."""
        self._graph, self._binding, self._memory = graph, binding, memory
        self._select: npt.NDArray[np.int64] | None = None
        self._outputs: Outputs | None = None
        """Bound outputs; None if they are not kept."""

    def run(self, select: npt.NDArray[np.int64]) -> Arrays:
        """Runs the graph. Returns arrays [N, …] for N selected tokens, which nobody else has."""
        if select is not self._select:
            bind(self._binding.bind_input, "select", select)
            self._select = select
        outputs = self._memory.take(len(select))
        arrays = outputs.arrays()
        if outputs is not self._outputs:
            for name, array in zip(HEAD_OUTPUTS, arrays, strict=True):
                bind(self._binding.bind_output, name, array)
            self._outputs = outputs if len(select) <= KEPT_TOKENS else None
        self._graph.session.run_with_iobinding(self._binding)
        return arrays
