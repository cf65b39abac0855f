"""The graph that ends a step: its choices for the selected tokens, in host memory."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from engines.base import HEAD_OUTPUTS
from engines.onnxruntime_backend.graph import Graph, bind

LARGE_OUTPUT = "logits"
"""Output that gets new memory in every run, since copying it would take longer than binding it."""


class BoundHead:
    """A graph with a head, bound to buffers for some number of selected tokens."""

    def __init__(self, graph: Graph, binding: Any) -> None:
        """`binding` has the graph's other inputs and outputs."""
        self._graph, self._binding = graph, binding
        self._select = np.empty(0, np.int64)
        self._small: dict[str, npt.NDArray[Any]] = {}

    def run(self, select: npt.NDArray[np.int64]) -> list[npt.NDArray[Any]]:
        """Runs the graph. Returns new arrays [N, …] for N selected tokens."""
        if len(self._select) != len(select):
            self._bind(len(select))
        self._select[:] = select
        large = self._bound(LARGE_OUTPUT)
        self._graph.session.run_with_iobinding(self._binding)
        return [
            large if name == LARGE_OUTPUT else self._small[name].copy() for name in HEAD_OUTPUTS
        ]

    def _bind(self, count: int) -> None:
        self._select = np.empty(count, np.int64)
        bind(self._binding.bind_input, "select", self._select)
        names = [name for name in HEAD_OUTPUTS if name != LARGE_OUTPUT]
        self._small = {name: self._bound(name) for name in names}

    def _bound(self, name: str) -> npt.NDArray[Any]:
        """Returns new memory for an output, and binds it."""
        shape = (len(self._select), *self._graph.outputs[name].shape[1:])
        output = np.empty(shape, self._graph.dtype(name))
        bind(self._binding.bind_output, name, output)
        return output
