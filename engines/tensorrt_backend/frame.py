"""Frames of the TensorRT back end: buffers for calls of one shape, and the stage runs over them.

A stage run waits for the GPU at its end. Therefore a step's time includes its own work only, the
buffers can be filled again, and the stream is empty when a run is recorded.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from engines.base import HEAD_OUTPUTS
from engines.cache.device_memory import DeviceArray
from engines.calls import Call
from engines.staged import Inputs
from engines.tensorrt_backend.buffers import Upload
from engines.tensorrt_backend.engine import Dims, LoadedEngine
from engines.tensorrt_backend.model import TensorrtModel
from engines.tensorrt_backend.stage_run import EngineRun, Recorder, StageRun


class TensorrtFrame:
    """Buffers for calls of one shape over one range of slots."""

    def __init__(self, model: TensorrtModel, recorder: Recorder, call: Call) -> None:
        self.inputs = Inputs(call.count, call.width)
        self._model, self._recorder = model, recorder
        self._shape = (call.count, call.width)
        self._capacity = call.pool.capacity
        self._uploads = {
            name: self._upload(name, array.shape) for name, array in self.inputs.named().items()
        }
        self._max_selected = min(model.max_selected, call.count * call.width)
        self._select = self._upload("select", (self._max_selected,))
        self._tensors: dict[str, DeviceArray] = {
            name: array[call.first : call.first + call.count]
            for name, array in call.pool.arrays.items()
        }
        self._tensors |= {name: upload.array for name, upload in self._uploads.items()}
        self._runs: dict[tuple[int, int], StageRun] = {}
        """Stage runs by stage and number of selected tokens."""

    def run(self, stage: int, select: npt.NDArray[np.int64]) -> list[npt.NDArray[Any]]:
        if stage == 0:
            for name, array in self.inputs.named().items():
                self._uploads[name].fill(array)
        if not select.size:
            return self._run(stage, select)
        step = self._max_selected
        parts = [self._run(stage, select[i : i + step]) for i in range(0, len(select), step)]
        return [np.concatenate(part) for part in zip(*parts, strict=True)]

    def _run(self, stage: int, select: npt.NDArray[np.int64]) -> list[npt.NDArray[Any]]:
        """Runs a stage for at most `_max_selected` selected tokens."""
        self._select.fill(select)
        key = (stage, len(select))
        if key not in self._runs:
            self._runs[key] = self._stage_run(*key)
        return self._recorder.run(self._runs[key])

    def _stage_run(self, stage: int, tokens: int) -> StageRun:
        uploads = []
        if stage == 0:
            uploads += [(upload, self._shape[0]) for upload in self._uploads.values()]
        if tokens:
            uploads.append((self._select, tokens))
        return StageRun(self._model, uploads, list(self._engine_runs(stage, tokens)), tokens)

    def _engine_runs(self, stage: int, tokens: int) -> Iterator[EngineRun]:
        segment, head = self._model.segments[stage], self._model.head
        engine = segment.engines[self._capacity]
        if "select" in engine.inputs:  # contains the head, which takes at least one token
            yield self._engine_run(engine, self._head_tensors(max(1, tokens)))
            return
        yield self._engine_run(engine, {})
        if not tokens:
            return
        if segment.exit is not None:
            yield self._engine_run(segment.exit, {})
        assert head is not None
        yield self._engine_run(head, self._head_tensors(tokens))

    def _engine_run(self, engine: LoadedEngine, more: Mapping[str, DeviceArray]) -> EngineRun:
        """Binds an engine to the frame's tensors and `more`; allocates its missing outputs."""
        for name, port in engine.outputs.items():
            if name.startswith(("hidden.", "features")) and name not in self._tensors:
                shape = (*self._shape, port.shape[-1])
                self._tensors[name] = self._model.store.empty(shape, port.dtype)
        tensors = {**self._tensors, **more}
        shapes: dict[str, Dims] = {name: tensors[name].shape for name in engine.inputs}
        return EngineRun(engine, engine.profile(shapes), tensors)

    def _head_tensors(self, tokens: int) -> dict[str, DeviceArray]:
        """Inputs and outputs of the head for `tokens` selected tokens."""
        outputs = self._model.outputs(tokens).arrays
        return {
            "select": self._select.array[:tokens],
            **{name: outputs[name][:tokens] for name in HEAD_OUTPUTS},
        }

    def _upload(self, name: str, shape: Dims) -> Upload:
        return Upload(self._model.device, self._model.store, shape, self._model.input_dtype(name))
