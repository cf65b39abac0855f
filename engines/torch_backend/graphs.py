"""CUDA graphs: what a call launches, recorded once and replayed.

A step of a small batch launches hundreds of kernels that take microseconds each, and Python is
slower at naming them than a GPU at running them. A graph replays them with one launch. It fixes
shapes and addresses, so one belongs to one shape of call over buffers that stay; the first use runs
as it is (libraries set themselves up then), the second one is recorded. Graphs of one model share
their scratch memory, since one runs at a time.

Unproven here: no machine of this project's tests has CUDA.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Any, Generic, TypeVar

import torch

GRAPHS = 32
"""Kept of one frame: it has one for each span of attention and number of wanted tokens."""

Result = TypeVar("Result")


class GraphReplay(Generic[Result]):
    """Runs functions of static buffers. What a function returns is overwritten by the next use of
    any graph, so it is to be read at once."""

    def __init__(self, scratch: Any) -> None:
        """`scratch`: of `torch.cuda.graph_pool_handle`."""
        self._scratch = scratch
        self._graphs: OrderedDict[Hashable, tuple[Any, Result] | None] = OrderedDict()

    def run(self, key: Hashable, function: Callable[[], Result]) -> Result:
        """`key` names all that the launches depend on, the function itself included."""
        recorded = self._graphs.get(key)
        if key not in self._graphs:
            self._graphs[key] = None
            if len(self._graphs) > GRAPHS:
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
    """For a device without such graphs."""

    def run(self, _: Hashable, function: Callable[[], Result]) -> Result:
        return function()
