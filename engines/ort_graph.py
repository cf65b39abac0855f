"""One ONNX file in ONNX Runtime."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime
from onnxruntime.capi import onnxruntime_pybind11_state as _native

from edgespec.errors import EngineError
from edgespec.manifest import MAIN_OPSET
from edgespec.profiles import ONNX_RUNTIME, runs_graphs
from engines.pools import BUCKETS, CacheTensor

_DTYPES: Mapping[str, Any] = {
    "tensor(float)": np.float32,
    "tensor(float16)": np.float16,
    "tensor(int64)": np.int64,
}
ORT_ERRORS: tuple[type[Exception], ...] = (
    RuntimeError,
    ValueError,
    # ONNX Runtime's own have no base but Exception.
    *(
        kind
        for kind in vars(_native).values()
        if isinstance(kind, type) and issubclass(kind, Exception)
    ),
)
HEAD_OUTPUTS = ("argmax", "top_ids", "top_logits", "logits")


@dataclass(frozen=True)
class OrtSettings:
    threads: int = 1
    slots: int = 16
    min_tokens: int = 2
    """2 for exactness; a draft may take 1, since its tokens are verified anyway."""
    arena: bool = True
    """ORT's memory arena: faster, and keeps its peak. Off on devices short of memory."""
    providers: tuple[str, ...] = ("CPUExecutionProvider",)
    capacities: tuple[int, ...] = BUCKETS
    """Positions that a slot may hold."""


class Graph:
    """One ONNX file in a session, with its inputs and outputs by name."""

    def __init__(self, path: Path, settings: OrtSettings) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = settings.threads
        options.inter_op_num_threads = 1
        options.enable_cpu_mem_arena = settings.arena
        options.log_severity_level = 3
        # Both sides may share cores; a spinning pool would take the other's.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        # int8 dot products for QDQ weights: 2.7 times fp32 for one row, same bits in any batch.
        options.add_session_config_entry("session.qdq_matmulnbits_accuracy_level", "4")
        available = onnxruntime.get_available_providers()
        providers = [provider for provider in settings.providers if provider in available]
        try:
            self.session = onnxruntime.InferenceSession(str(path), options, providers=providers)
        except ORT_ERRORS as error:
            version = onnxruntime.__version__
            if not runs_graphs(version):
                needed = ".".join(map(str, ONNX_RUNTIME[MAIN_OPSET]))
                raise EngineError(
                    f"ONNX Runtime {version} is too old for the graphs, which need {needed}; "
                    "install a newer one (Python 3.11 or newer has it), or use --drafter ngram"
                ) from error
            raise EngineError(
                f"ONNX Runtime {version} cannot load {path}: {reason(error)}"
            ) from error
        self.inputs = {i.name: i for i in self.session.get_inputs()}
        self.outputs = {o.name: o for o in self.session.get_outputs()}

    def dtype(self, name: str) -> Any:
        return _DTYPES[(self.inputs.get(name) or self.outputs[name]).type]

    def cache_tensors(self) -> list[CacheTensor]:
        """The KV cache that the graph reads and writes."""
        return [
            CacheTensor(name, info.shape[1], info.shape[3], self.dtype(name))
            for name, info in self.inputs.items()
            if name.startswith("cache_")
        ]


def reason(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


def bind(method: Any, name: str, array: npt.NDArray[Any]) -> None:
    method(name, "cpu", 0, array.dtype.type, array.shape, array.ctypes.data)


def run_head(graph: Graph, binding: Any, select: npt.NDArray[np.int64]) -> list[npt.NDArray[Any]]:
    """Runs a graph that ends in the head; its outputs, fresh, [N, …] for the N selected tokens."""
    outputs = []
    for name in HEAD_OUTPUTS:
        shape = (len(select), *graph.outputs[name].shape[1:])
        outputs.append(np.empty(shape, graph.dtype(name)))
        bind(binding.bind_output, name, outputs[-1])
    bind(binding.bind_input, "select", select)
    graph.session.run_with_iobinding(binding)
    return outputs
