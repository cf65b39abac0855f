"""One ONNX file in ONNX Runtime, on a CPU or on a GPU.

**CUDA.** `onnxruntime-gpu` 1.31.1 registers CUDA kernels for every operator of the opset-24 graphs:
`TensorScatter` 24 (copies its cache only if the output has another address: tensorscatter.cc),
`Attention` 24 with `nonpad_kv_seqlen` (Flash Attention for fp16 and bf16, an unfused path for fp32;
causal from the bottom right since pull request 28958), `RMSNormalization` 23, `RotaryEmbedding` 23,
`Reshape`, `Transpose`, `Cast` and blocked `DequantizeLinear` 23 to 24, `TopK` 24, and contrib
`MatMulNBits`. `Swish` has no kernel and is expanded into `Sigmoid` and `Mul` on every provider.
Sources: libonnxruntime_providers_cuda.so (names and version ranges of the registrations) and
docs/OperatorKernels.md. Older versions lack some kernels (pull requests 27542 and 27742).

This has not run on a GPU. Therefore the placement of every node is checked at load: arithmetic on
the CPU would move the KV cache there and back in every step, so such a graph is refused.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt
import onnxruntime

from edgespec.errors import EngineError
from edgespec.manifest import COMPAT_OPSET, MAIN_OPSET
from engines.cache.device_memory import DeviceArray
from engines.cache.pools import CacheTensor
from engines.cuda import GpuDevice
from engines.machine.profiles import CPU, CUDA, ONNX_RUNTIME, runs_graphs
from engines.onnxruntime_backend.freed import give_back_freed
from engines.onnxruntime_backend.huge_pages import HugePages
from engines.onnxruntime_backend.session import ORT_ERRORS, OrtSettings, open_session, reason

Role = Literal["draft", "target"]

log = logging.getLogger("edgespec.engines")

_DTYPES: Mapping[str, Any] = {
    "tensor(float)": np.float32,
    "tensor(float16)": np.float16,
    "tensor(int64)": np.int64,
}
_INSTEAD: Mapping[Role, str] = MappingProxyType(
    {
        "draft": "take a draft exported with --profile cpu-compat, or --drafter ngram",
        "target": f"or export the target with --opset {COMPAT_OPSET}",
    }
)
"""Other advice if ONNX Runtime is too old for a graph of opset 24."""
_SHAPE_OPERATORS = frozenset(
    {
        "Add", "Cast", "Concat", "Constant", "ConstantOfShape", "Div", "Expand", "Gather",
        "Identity", "LessOrEqual", "Mul", "Range", "Reshape", "Shape", "Size", "Slice", "Squeeze",
        "Sub", "Tile", "Unsqueeze", "Where",
    }
)  # fmt: skip
"""Operators that may run on the CPU of a GPU machine, outside the layers: ONNX Runtime computes
shapes there on purpose, and the mask of the plain operators is small."""
_LAYER_PREFIXES = ("model.layers.", "cache_")
"""Prefixes of the names of a layer's nodes."""


class Graph:
    """One ONNX file in a session, with its inputs and outputs by name."""

    def __init__(
        self,
        path: Path,
        settings: OrtSettings,
        device: GpuDevice | None = None,
        *,
        opset: int = MAIN_OPSET,
        role: Role = "draft",
    ) -> None:
        """Loads a file. `device` is the memory of caches and hidden states; None for the host's.

        `opset` is the file's opset according to the manifest. Raises `EngineError`.
        """
        gpu = device if device is not None and device.place == "cuda" else None
        available = set(onnxruntime.get_available_providers()) - {CUDA}
        providers: list[Any] = [p for p in settings.providers if p in available] or [CPU]
        if gpu:
            providers.insert(0, (CUDA, cuda_options(gpu)))
        memory = HugePages()
        try:
            self.session = open_session(
                path, settings, providers, draft=role == "draft", placement=gpu is not None
            )
        except ORT_ERRORS as error:
            version = onnxruntime.__version__
            raise EngineError(
                too_old(version, path, opset, role)
                or f"ONNX Runtime {version} cannot load {path}: {reason(error)}"
            ) from error
        if gpu:
            check_placement(path, self.session.get_providers(), placement(self.session))
        give_back_freed()
        if not gpu:
            memory.start()
        self.inputs = {i.name: i for i in self.session.get_inputs()}
        self.outputs = {o.name: o for o in self.session.get_outputs()}

    def dtype(self, name: str) -> Any:
        return _DTYPES[(self.inputs.get(name) or self.outputs[name]).type]

    def cache_tensors(self) -> list[CacheTensor]:
        """Returns the KV cache tensors that the graph reads and writes."""
        return [
            CacheTensor(name, info.shape[1], info.shape[3], self.dtype(name))
            for name, info in self.inputs.items()
            if name.startswith("cache_")
        ]


def too_old(version: str, path: Path, opset: int, role: Role) -> str:
    """Returns why this ONNX Runtime cannot run a graph, with advice; empty if it can."""
    if runs_graphs(version, opset):
        return ""
    needed = ".".join(map(str, ONNX_RUNTIME[opset]))
    advice = "install a newer one"
    if opset > COMPAT_OPSET:
        advice += f" (Python 3.11 or newer has it), {_INSTEAD[role]}"
    return (
        f"ONNX Runtime {version} is too old for {path}, which needs {needed} (opset {opset}); "
        f"{advice}"
    )


class Placed(NamedTuple):
    """Memory of a tensor, as ONNX Runtime's binding takes it."""

    place: str
    dtype: Any
    shape: tuple[int, ...]
    address: int


Tensor = npt.NDArray[Any] | DeviceArray


def placed(tensor: Tensor) -> Placed:
    if isinstance(tensor, DeviceArray):
        return Placed(tensor.place, tensor.dtype.type, tensor.shape, tensor.address)
    return Placed("cpu", tensor.dtype.type, tensor.shape, tensor.ctypes.data)


def bind(method: Any, name: str, tensor: Tensor) -> None:
    """Binds a tensor to a name. The tensor must live as long as the binding."""
    at = placed(tensor)
    method(name, at.place, 0, at.dtype, at.shape, at.address)


def cuda_options(device: GpuDevice) -> dict[str, str]:
    """Returns the options of ONNX Runtime's CUDA provider.

    It uses edgespec's stream, so that its kernels and edgespec's copies run in order. It allocates
    only what it needs, since the cache needs the rest. It computes fp32 as fp32, not as TF32.
    Source: https://onnxruntime.ai/docs/execution-providers/CUDA-ExecutionProvider.html.
    """
    return {
        "device_id": "0",
        "user_compute_stream": str(device.stream),
        "arena_extend_strategy": "kSameAsRequested",
        "use_tf32": "0",
    }


class Node(NamedTuple):
    """A node of a loaded graph, and the provider that runs it."""

    provider: str
    name: str
    operator: str


def placement(session: Any) -> list[Node]:
    """Returns the provider of every node.

    The session needs the option `session.record_ep_graph_assignment_info`. An ONNX Runtime that is
    too old for it causes a warning and an empty list.
    """
    ask = getattr(session, "get_provider_graph_assignment_info", None)
    if ask is None:
        log.warning(
            "ONNX Runtime %s cannot say which nodes run on the GPU; if steps are slow, some do not",
            onnxruntime.__version__,
        )
        return []
    return [Node(part.ep_name, n.name, n.op_type) for part in ask() for n in part.get_nodes()]


def check_placement(path: Path, providers: Iterable[str], nodes: Iterable[Node]) -> None:
    """Raises `EngineError` if the GPU does not run the graph."""
    version = onnxruntime.__version__
    if CUDA not in providers:
        raise EngineError(
            f"ONNX Runtime {version} did not start its CUDA provider (its own line above says why: "
            "most often CUDA's or cuDNN's libraries are missing); install what it needs, or use a "
            "CPU profile"
        )
    on_cpu = [n for n in nodes if n.provider == CPU and not _allowed_on_cpu(n)]
    if on_cpu:
        kinds = ", ".join(sorted({node.operator for node in on_cpu}))
        raise EngineError(
            f"ONNX Runtime {version} has no CUDA kernels for {len(on_cpu)} nodes of {path} "
            f"({kinds}; first {on_cpu[0].name!r}) and would carry the KV cache to the CPU and back "
            "in every step; install a newer one (1.31.1 has them), or export the target with "
            f"--opset {COMPAT_OPSET} and the draft for a profile of it, or use a CPU profile"
        )


def _allowed_on_cpu(node: Node) -> bool:
    return node.operator in _SHAPE_OPERATORS and not node.name.startswith(_LAYER_PREFIXES)
