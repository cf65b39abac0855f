"""A target or a draft as TensorRT engines, one for each graph and capacity.

Caches lie in the GPU's memory and are bound as input and as output of an engine with the same
address. All engines share one stream and one scratch memory, since one runs at a time.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple
from weakref import WeakSet

import numpy as np

from engines.base import HEAD_OUTPUTS
from engines.cache.device_memory import DeviceStore, device_pools
from engines.cache.pools import CacheTensor, MakePool
from engines.calls import Call
from engines.cuda import GpuDevice
from engines.staged import Stage
from engines.tensorrt_backend.engine import EngineContext, LoadedEngine
from engines.tensorrt_backend.frame import Outputs, Recorded, TensorrtFrame

RECORDED = 256
"""Graphs kept at most; a graph holds contexts, and TensorRT's own memory for them."""


class TensorrtSegment(NamedTuple):
    end: int
    """Layers done after it."""
    engines: Mapping[int, LoadedEngine]
    """By capacity."""
    exit: LoadedEngine | None = None


class TensorrtRunner:
    """Segments with their exit heads, and the head; None where the last engine has it inside."""

    def __init__(
        self, segments: Sequence[TensorrtSegment], head: LoadedEngine | None, device: GpuDevice
    ) -> None:
        self.segments, self.head, self.device = segments, head, device
        self.store = DeviceStore(device)
        self.make_pool: MakePool = device_pools(device)
        self.stages = [Stage(part.end, part.exit is not None) for part in segments]
        self.capacities = sorted(set.intersection(*(set(part.engines) for part in segments)))
        first = [part.engines[self.capacities[0]] for part in segments]
        self.tensors = [tensor for engine in first for tensor in _cache_tensors(engine)]
        self.records = True
        """Whether CUDA graphs can be recorded, as far as is known."""
        self.recorded: WeakSet[Recorded] = WeakSet()
        self._outputs: dict[int, Outputs] = {}
        self._most_rows: dict[int, int] = {}
        engines = list(self.engines())
        scratch = max(engine.scratch for engine in engines)
        self._scratch = self.store.empty((scratch,), np.uint8)
        self._shared = {
            engine: [self.context(engine, number) for number in range(engine.profiles)]
            for engine in engines
        }
        device.finish()

    def context(self, engine: LoadedEngine, profile: int) -> EngineContext:
        """A new one, over the scratch memory that all share."""
        return engine.context(profile, self._scratch, self.device.stream)

    def shared(self, engine: LoadedEngine, profile: int) -> EngineContext:
        """The one for runs that are not recorded."""
        return self._shared[engine][profile]

    def engines(self) -> Iterator[LoadedEngine]:
        for part in self.segments:
            yield from part.engines.values()
            if part.exit is not None:
                yield part.exit
        if self.head is not None:
            yield self.head

    @property
    def may_record(self) -> bool:
        return self.records and len(self.recorded) < RECORDED

    @property
    def answering(self) -> LoadedEngine:
        """The engine that has the head."""
        return self.head or self.segments[-1].engines[self.capacities[0]]

    @property
    def most_selected(self) -> int:
        return self.answering.most("select", 0)

    def most_rows(self, tokens: int) -> int:
        """Rows of a call, by the tokens of each: what every engine takes."""
        if tokens not in self._most_rows:
            engines = self.engines()
            self._most_rows[tokens] = min(e.most(_states(e), 0, axis1=tokens) for e in engines)
        return self._most_rows[tokens]

    @property
    def most_tokens(self) -> int:
        """Of one row."""
        return min(engine.most(_states(engine), 1) for engine in self.engines())

    def outputs(self, count: int) -> Outputs:
        """Room for `count` tokens' choices, shared by all frames: one runs at a time, and takes
        them before the next. Sizes are powers of two, and stay, since graphs know where they lie.
        """
        size = min(self.most_selected, 1 << (count - 1).bit_length())
        if size not in self._outputs:
            ports = [self.answering.outputs[name] for name in HEAD_OUTPUTS]
            self._outputs[size] = Outputs(self.device, self.store, ports, size)
        return self._outputs[size]

    def frame(self, call: Call) -> TensorrtFrame:
        return TensorrtFrame(self, call)


def _states(engine: LoadedEngine) -> str:
    """The input [batch, tokens, …] that ids or hidden states come in by."""
    return next(n for n in engine.inputs if n.startswith(("input_ids", "hidden.", "features")))


def _cache_tensors(engine: LoadedEngine) -> list[CacheTensor]:
    return [
        CacheTensor(name, port.shape[1], port.shape[3], port.dtype)
        for name, port in engine.inputs.items()
        if name.startswith("cache_")
    ]
