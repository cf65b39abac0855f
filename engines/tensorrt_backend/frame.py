"""Calls of one shape through TensorRT engines: buffers, what is bound, and what is recorded.

Each run ends with waiting for the GPU, so that time is counted where it is spent, nothing is
overwritten that is still to be read, and nothing else is on the stream while one is recorded.

What runs a second time with the same shapes is recorded as a CUDA graph and replayed from then on:
a step of small batches is otherwise a few hundred launches. A recorded context may not be bound
otherwise afterwards, so it gets one of its own, and TensorRT wants a run with the same shapes first
(its guide, «CUDA Graphs»).
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt

from edgespec.errors import EngineError
from engines.base import HEAD_OUTPUTS
from engines.cache.device_memory import DeviceArray, DeviceStore
from engines.calls import Call
from engines.cuda import GpuDevice
from engines.staged import Inputs
from engines.tensorrt_backend.engine import Dims, EngineContext, LoadedEngine, Port

if TYPE_CHECKING:
    from engines.tensorrt_backend.runner import TensorrtRunner

log = logging.getLogger("edgespec.engines")


class Outputs:
    """A head's outputs for up to `size` tokens, on the device and in the host's memory."""

    def __init__(self, device: GpuDevice, store: DeviceStore, ports: Sequence[Port], size: int):
        self.ports = ports
        shapes = [(size, *port.shape[1:]) for port in ports]
        self.there = [store.empty(s, p.dtype) for s, p in zip(shapes, ports, strict=True)]
        self.here = [device.host(s, p.dtype) for s, p in zip(shapes, ports, strict=True)]

    def read(self, device: GpuDevice, count: int) -> None:
        for here, there in zip(self.here, self.there, strict=True):
            device.read(here[:count], there.address)

    def taken(self, count: int) -> list[npt.NDArray[Any]]:
        """Copies: ids as int64, logits as numbers that numpy knows."""
        return [_plain(h[:count], p) for h, p in zip(self.here, self.ports, strict=True)]


def _plain(array: npt.NDArray[Any], port: Port) -> npt.NDArray[Any]:
    if port.bfloat16:
        return (array.astype(np.uint32) << 16).view(np.float32)
    return array.astype(np.int64 if port.dtype.kind == "i" else port.dtype)


class _Run(NamedTuple):
    """An engine, the profile that takes the frame's shapes, and what is bound to it."""

    engine: LoadedEngine
    profile: int
    tensors: dict[str, DeviceArray]
    key: object
    """Of this and no other."""

    def enqueue(self, context: EngineContext, stream: int) -> None:
        context.bind(self.key, self.tensors)
        context.enqueue(stream)


class Recorded:
    """A graph, and the contexts whose runs it holds."""

    def __init__(self, replay: Callable[[], None], contexts: Sequence[EngineContext]) -> None:
        self.replay, self.contexts = replay, contexts


class TensorrtFrame:
    """Buffers and recorded graphs for calls of one shape."""

    def __init__(self, runner: TensorrtRunner, call: Call) -> None:
        self.inputs = Inputs(call.count, call.width)
        self._runner, self._device = runner, runner.device
        self._shape = (call.count, call.width)
        self._capacity = call.pool.capacity
        self._tensors: dict[str, DeviceArray] = {}
        for name, array in call.pool.arrays.items():
            self._tensors[name] = array[call.first : call.first + call.count]
        self._sent: list[tuple[npt.NDArray[Any], npt.NDArray[Any], DeviceArray]] = []
        """What is filled, the host's memory that it is sent from, and where it goes."""
        for name, array in self.inputs.named().items():
            self._send(name, array)
        self._runs: dict[tuple[int, int], list[_Run]] = {}
        self._seen: set[tuple[int, int]] = set()
        self._graphs: dict[tuple[int, int], Recorded] = {}
        most = min(runner.most_selected, call.count * call.width)
        self._select = self._device.host((most,), runner.answering.inputs["select"].dtype)
        self._selected = runner.store.zeros(self._select.shape, self._select.dtype)

    def run(self, stage: int, select: npt.NDArray[np.int64]) -> list[npt.NDArray[Any]]:
        if stage == 0:
            for source, sent, _ in self._sent:
                np.copyto(sent, source, casting="same_kind")
        if not select.size:
            self._do(stage, select)
            return []
        most = len(self._select)
        parts = [self._do(stage, select[i : i + most]) for i in range(0, len(select), most)]
        return [np.concatenate(part) for part in zip(*parts, strict=True)]

    def _do(self, stage: int, select: npt.NDArray[np.int64]) -> list[npt.NDArray[Any]]:
        """One run of a stage, which may be repeated: it writes the same keys and values again."""
        key = (stage, len(select))
        self._select[: len(select)] = select
        if key in self._graphs:
            self._graphs[key].replay()
        else:
            self._now(*key, [self._runner.shared(*run[:2]) for run in self._planned(*key)])
        self._device.finish()
        taken = self._runner.outputs(len(select)).taken(len(select)) if len(select) else []
        if key in self._seen and key not in self._graphs and self._runner.may_record:
            self._record(*key)
        self._seen.add(key)
        return taken

    def _record(self, stage: int, count: int) -> None:
        """Repeats a stage that has just run in contexts of its own, and records it."""
        stream = self._device.stream
        try:
            runs = self._planned(stage, count)
            contexts = [self._runner.context(run.engine, run.profile) for run in runs]
            self._now(stage, count, contexts)
            self._device.finish()
            for context in contexts:
                context.check_recordable(stream)
            graph = self._device.capture(lambda: self._now(stage, count, contexts))
        except EngineError as error:
            self._runner.records = False
            log.warning("steps are not recorded as CUDA graphs, and take longer: %s", error)
            return
        recorded = self._graphs[stage, count] = Recorded(graph, contexts)
        self._runner.recorded.add(recorded)

    def _now(self, stage: int, count: int, contexts: Sequence[EngineContext]) -> None:
        """Asks the stream for all that a stage does."""
        if stage == 0:
            for _, sent, there in self._sent:
                self._device.write(there.address, sent)
        if count:
            self._device.write(self._selected.address, self._select[:count])
        for run, context in zip(self._planned(stage, count), contexts, strict=True):
            run.enqueue(context, self._device.stream)
        if count:
            self._runner.outputs(count).read(self._device, count)

    def _planned(self, stage: int, count: int) -> list[_Run]:
        key = (stage, count)
        if key not in self._runs:
            self._runs[key] = list(self._plan(stage, count))
        return self._runs[key]

    def _plan(self, stage: int, count: int) -> Iterator[_Run]:
        segment, head = self._runner.segments[stage], self._runner.head
        engine = segment.engines[self._capacity]
        if "select" in engine.inputs:
            # The head is inside, and answers for at least one token, if only to nobody.
            yield self._one(engine, self._tensors | self._answers(max(1, count)))
            return
        yield self._one(engine, self._tensors)
        if not count:
            return
        if segment.exit is not None:
            yield self._one(segment.exit, self._tensors)
        assert head is not None
        yield self._one(head, self._tensors | self._answers(count))

    def _one(self, engine: LoadedEngine, tensors: dict[str, DeviceArray]) -> _Run:
        for name, port in engine.outputs.items():
            if name.startswith(("hidden.", "features")) and name not in self._tensors:
                shape = (*self._shape, port.shape[-1])
                self._tensors[name] = self._runner.store.empty(shape, port.dtype)
        tensors = self._tensors | tensors
        shapes: dict[str, Dims] = {name: tensors[name].shape for name in engine.inputs}
        return _Run(engine, engine.profile(shapes), tensors, object())

    def _answers(self, count: int) -> dict[str, DeviceArray]:
        """What a head reads and writes for `count` tokens."""
        there = self._runner.outputs(count).there
        outputs = {name: array[:count] for name, array in zip(HEAD_OUTPUTS, there, strict=True)}
        return {"select": self._selected[:count], **outputs}

    def _send(self, name: str, array: npt.NDArray[Any]) -> None:
        ports = (engine.inputs.get(name) for engine in self._runner.engines())
        dtype = next((port.dtype for port in ports if port is not None), array.dtype)
        sent = self._device.host(array.shape, dtype)
        self._tensors[name] = self._runner.store.empty(array.shape, dtype)
        self._sent.append((array, sent, self._tensors[name]))
