"""CUDA graphs: the kernel launches of a call, recorded once and replayed.

A step of a small batch launches hundreds of kernels of a few microseconds each. Launching them from
Python takes longer than running them. A graph replays them with one launch. It has fixed shapes and
addresses, so it belongs to one shape of call over fixed buffers. The first use runs without a graph
(libraries initialise themselves), the second is recorded. The graphs of a model share their scratch
memory, because only one runs at a time.

Unproven: no machine of this project's tests has CUDA.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Any, Generic, TypeVar

import torch

MAX_GRAPHS = 32
"""Number of graphs kept for a frame, which has one for each attention span and number of selected
tokens."""

Result = TypeVar("Result")


class GraphReplay(Generic[Result]):
    """Runs functions over fixed buffers, from their second use on as graphs.

    The next run of any graph overwrites a function's results, so the caller reads them at once.
    """

    def __init__(self, scratch: Any) -> None:
        """`scratch` comes from `torch.cuda.graph_pool_handle`."""
        self._scratch = scratch
        self._graphs: OrderedDict[Hashable, tuple[Any, Result] | None] = OrderedDict()

    def run(self, key: Hashable, function: Callable[[], Result]) -> Result:
        """Runs `function`. `key` identifies it, with everything that its launches depend on."""
        recorded = self._graphs.get(key)
        if key not in self._graphs:
            self._graphs[key] = None
            if len(self._graphs) > MAX_GRAPHS:
                self._graphs.popitem(last=False)
            return function()
        self._graphs.move_to_end(key)
        if recorded is None:
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, pool=self._scratch):
                result = function()
            recorded = self._graphs[key] = graph, result
        recorded[0].replay()
        return recorded[1]


class DirectCalls(Generic[Result]):
    """Runs functions directly, for a device without CUDA graphs."""

    def run(self, _: Hashable, function: Callable[[], Result]) -> Result:
        return function()
