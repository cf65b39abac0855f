"""The TensorRT back end as a runner (`engines/staged.py`): its stages, pools and frames.

Caches are in the GPU's memory. An engine's cache input and output are bound to the same address, so
that it writes the cache in place.
"""

from __future__ import annotations

from engines.cache.device_memory import device_pools
from engines.cache.pools import MakePool
from engines.calls import Call
from engines.staged import Stage
from engines.tensorrt_backend.frame import TensorrtFrame
from engines.tensorrt_backend.model import TensorrtModel
from engines.tensorrt_backend.stage_run import Recorder


class TensorrtRunner:
    """Runs calls through the segments of a model."""

    def __init__(self, model: TensorrtModel) -> None:
        self.model = model
        self.recorder = Recorder(model)
        self.stages = [Stage(part.end, part.exit is not None) for part in model.segments]
        self.tensors = model.cache_tensors
        self.make_pool: MakePool = device_pools(model.device)

    def frame(self, call: Call) -> TensorrtFrame:
        return TensorrtFrame(self.model, self.recorder, call)
