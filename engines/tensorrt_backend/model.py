"""The loaded TensorRT engines of a target or a draft, and the memory that their runs share.

There is one engine for each graph and capacity. All engines share one stream and one scratch
memory, because only one runs at a time. For the same reason all frames share the head's outputs.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from engines.base import HEAD_OUTPUTS
from engines.cache.device_memory import DeviceStore
from engines.cache.pools import CacheTensor
from engines.cuda import GpuDevice
from engines.tensorrt_backend.buffers import HeadOutputs
from engines.tensorrt_backend.engine import EngineContext, LoadedEngine


class TensorrtSegment(NamedTuple):
    """Engines of one segment."""

    end: int
    """Number of layers that have run after it."""
    engines: Mapping[int, LoadedEngine]
    """Engines by capacity."""
    exit: LoadedEngine | None = None
    """Exit head after the segment."""


class TensorrtModel:
    """Segments with their exit heads, and the final head."""

    def __init__(
        self, segments: Sequence[TensorrtSegment], head: LoadedEngine | None, device: GpuDevice
    ) -> None:
        """`head` is None if the last segment's engines contain the head."""
        self.segments, self.head, self.device = segments, head, device
        self.store = DeviceStore(device)
        self.capacities = sorted(set.intersection(*(set(part.engines) for part in segments)))
        self.engines = list(_engines(segments, head))
        self._outputs: dict[int, HeadOutputs] = {}
        self._max_rows: dict[int, int] = {}
        self._scratch = self.store.empty((max(e.scratch for e in self.engines),), np.uint8)
        self._contexts = {
            engine: [self.new_context(engine, profile) for profile in range(engine.profiles)]
            for engine in self.engines
        }
        device.finish()

    @property
    def cache_tensors(self) -> list[CacheTensor]:
        """KV cache tensors of a slot."""
        engines = [part.engines[self.capacities[0]] for part in self.segments]
        return [tensor for engine in engines for tensor in _cache_tensors(engine)]

    @property
    def head_engine(self) -> LoadedEngine:
        """An engine that contains the head."""
        return self.head or self.segments[-1].engines[self.capacities[0]]

    @property
    def max_selected(self) -> int:
        """Largest number of tokens that a run of the head takes."""
        return self.head_engine.largest("select", 0)

    @property
    def max_tokens(self) -> int:
        """Largest number of tokens of a row that every engine takes."""
        return min(engine.largest(_states(engine), 1) for engine in self.engines)

    def max_rows(self, tokens: int) -> int:
        """Returns the largest number of rows of `tokens` tokens that every engine takes."""
        if tokens not in self._max_rows:
            self._max_rows[tokens] = min(
                engine.largest(_states(engine), 0, {1: tokens}) for engine in self.engines
            )
        return self._max_rows[tokens]

    def shared_context(self, engine: LoadedEngine, profile: int) -> EngineContext:
        """Returns the context of an optimisation profile for runs that are not recorded."""
        return self._contexts[engine][profile]

    def new_context(self, engine: LoadedEngine, profile: int) -> EngineContext:
        """Makes a context that uses the shared scratch memory."""
        return engine.context(profile, self._scratch, self.device.stream)

    def input_dtype(self, name: str) -> np.dtype[np.generic]:
        """Returns the type of a graph input; int64 if no engine has it."""
        ports = (engine.inputs.get(name) for engine in self.engines)
        return next((port.dtype for port in ports if port is not None), np.dtype(np.int64))

    def outputs(self, tokens: int) -> HeadOutputs:
        """Returns the head's output buffers for `tokens` tokens.

        Sizes are powers of two. A buffer is never freed, since recorded graphs use its address.
        """
        size = min(self.max_selected, 1 << (tokens - 1).bit_length())
        if size not in self._outputs:
            ports = [self.head_engine.outputs[name] for name in HEAD_OUTPUTS]
            self._outputs[size] = HeadOutputs(self.device, self.store, ports, size)
        return self._outputs[size]


def _engines(
    segments: Sequence[TensorrtSegment], head: LoadedEngine | None
) -> Iterator[LoadedEngine]:
    for part in segments:
        yield from part.engines.values()
        if part.exit is not None:
            yield part.exit
    if head is not None:
        yield head


def _states(engine: LoadedEngine) -> str:
    """Returns the input [batch, tokens, …] that carries ids, hidden states or features."""
    return next(n for n in engine.inputs if n.startswith(("input_ids", "hidden.", "features")))


def _cache_tensors(engine: LoadedEngine) -> list[CacheTensor]:
    return [
        CacheTensor(name, port.shape[1], port.shape[3], port.dtype)
        for name, port in engine.inputs.items()
        if name.startswith("cache_")
    ]
