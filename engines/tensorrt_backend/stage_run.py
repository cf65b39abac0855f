"""Runs of a stage with fixed shapes, and their recording as CUDA graphs.

A step of small batches enqueues a few hundred kernels; replaying a graph enqueues them with one
launch. A context that was recorded must not be bound to anything else afterwards, so a recording
uses contexts of its own. TensorRT requires a run with the same shapes before the recording
(TensorRT's guide, "CUDA Graphs").
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from weakref import WeakSet

import numpy.typing as npt

from edgespec.errors import EngineError
from engines.cache.device_memory import DeviceArray
from engines.tensorrt_backend.buffers import HeadOutputs, Upload
from engines.tensorrt_backend.engine import EngineContext, LoadedEngine
from engines.tensorrt_backend.model import TensorrtModel

log = logging.getLogger("edgespec.engines")

MAX_GRAPHS = 256
"""Number of graphs kept; a graph holds contexts, and TensorRT's own memory for them."""


@dataclass(frozen=True, eq=False)
class EngineRun:
    """A run of one engine over fixed tensors, with the optimisation profile for their shapes."""

    engine: LoadedEngine
    profile: int
    tensors: Mapping[str, DeviceArray]
    key: object = field(default_factory=object)
    """Identifies these tensors to a context, without keeping them alive."""


@dataclass(frozen=True, eq=False)
class StageGraph:
    """A recorded stage run."""

    replay: Callable[[], None]
    contexts: Sequence[EngineContext]
    """Contexts that the graph uses; they must live as long as the graph."""


@dataclass(eq=False)
class StageRun:
    """A segment, and a head for a fixed number of selected tokens."""

    model: TensorrtModel
    uploads: Sequence[tuple[Upload, int]]
    """Copies to the device before the run, with the number of their rows."""
    engine_runs: Sequence[EngineRun]
    tokens: int
    """Number of selected tokens."""
    has_run: bool = False
    graph: StageGraph | None = None

    @property
    def _outputs(self) -> HeadOutputs | None:
        return self.model.outputs(self.tokens) if self.tokens else None

    def run(self) -> list[npt.NDArray[Any]]:
        """Runs the stage, waits for the GPU and returns the head's outputs.

        May be repeated: it then writes the same keys and values again.
        """
        if self.graph is not None:
            self.graph.replay()
        else:
            shared = self.model.shared_context
            self.enqueue([shared(run.engine, run.profile) for run in self.engine_runs])
        self.model.device.finish()
        return self._outputs.copies(self.tokens) if self._outputs else []

    def enqueue(self, contexts: Sequence[EngineContext]) -> None:
        """Enqueues the copies and the engine runs, each in its context."""
        for upload, rows in self.uploads:
            upload.enqueue(rows)
        for run, context in zip(self.engine_runs, contexts, strict=True):
            context.bind(run.key, run.tensors)
            context.enqueue(self.model.device.stream)
        if self._outputs:
            self._outputs.enqueue(self.tokens)


class Recorder:
    """Runs stages, and records each as a CUDA graph when it runs for the second time."""

    def __init__(self, model: TensorrtModel) -> None:
        self._model = model
        self._works = True
        """False after a recording has failed."""
        self.graphs: WeakSet[StageGraph] = WeakSet()
        """Graphs that are in use."""

    def run(self, stage: StageRun) -> list[npt.NDArray[Any]]:
        """Runs a stage and returns the head's outputs. Raises `EngineError` if the run fails."""
        outputs = stage.run()
        may_record = self._works and len(self.graphs) < MAX_GRAPHS
        if stage.has_run and stage.graph is None and may_record:
            self._record(stage)
        stage.has_run = True
        return outputs

    def _record(self, stage: StageRun) -> None:
        """Repeats a stage in contexts of its own, and records it."""
        device = self._model.device
        try:
            contexts = [self._model.new_context(r.engine, r.profile) for r in stage.engine_runs]
            stage.enqueue(contexts)
            device.finish()
            for context in contexts:
                context.check_recordable(device.stream)
            replay = device.capture(lambda: stage.enqueue(contexts))
        except EngineError as error:
            self._works = False
            log.warning("steps are not recorded as CUDA graphs, and take longer: %s", error)
            return
        stage.graph = StageGraph(replay, contexts)
        self.graphs.add(stage.graph)
