"""CUDA memory, copies and graphs for the back ends, over `cuda-python` 12 and 13.

A `GpuDevice` is memory with addresses and one stream. Operations run in order and asynchronously;
`finish` waits for them. Copies from and to the host use page-locked arrays: only such copies are
asynchronous and can be recorded in a graph.

Functions of `cuda.bindings.runtime` (`cuda.cudart` up to 12.8) return `(error, value, …)` and take
plain integers as addresses
(https://nvidia.github.io/cuda-python/cuda-bindings/latest/module/runtime.html). The module can be
imported without a driver; the first call then fails with `cudaErrorInsufficientDriver`.
"""

from __future__ import annotations

import ctypes
import importlib
import math
import weakref
from collections.abc import Callable
from types import MappingProxyType, ModuleType
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from edgespec.errors import EngineError

BYTES_PER_MB = 1e6
MODULES = ("cuda.bindings.runtime", "cuda.cudart")
_HELP = MappingProxyType(
    {
        "cudaErrorInsufficientDriver": "NVIDIA's driver is missing or older than this CUDA; "
        "install or update it until nvidia-smi works, or use a CPU profile",
        "cudaErrorNoDevice": "there is no NVIDIA GPU that this process may use; use a CPU profile, "
        "or hand the GPU to the container (--gpus all) and check CUDA_VISIBLE_DEVICES",
        "cudaErrorMemoryAllocation": "the GPU's memory is full; lower --kv-memory or end other "
        "programs that use it",
        "cudaErrorInitializationError": "the driver did not start; see nvidia-smi and dmesg",
        "cudaErrorSystemDriverMismatch": "driver and kernel module differ; restart the machine",
        "cudaErrorDevicesUnavailable": "the GPU is in use by a process that does not share it",
        "cudaErrorNoKernelImageForDevice": "what was built for another GPU does not run on this "
        "one; run 'edgespec build' again here",
        "cudaErrorIllegalAddress": "the GPU was asked for memory that is not there and its state "
        "is lost; start again and report what ran",
    }
)
"""Advice to the user, by CUDA's name of the error."""


class Buffer(Protocol):
    """Memory of a device. It is freed with the last reference to it."""

    @property
    def address(self) -> int: ...

    @property
    def size(self) -> int:
        """Number of bytes."""


class GpuDevice(Protocol):
    """Memory of a GPU, and a stream that runs operations in order. Raises `EngineError`."""

    @property
    def place(self) -> str:
        """Name of the memory in ONNX Runtime's bindings: `cuda`."""

    @property
    def stream(self) -> int:
        """Handle of the stream."""

    def memory(self) -> tuple[int, int]:
        """Returns the free and the total bytes."""

    def allocate(self, size: int) -> Buffer:
        """Returns `size` uninitialised bytes, aligned to 256."""

    def host(self, shape: tuple[int, ...], dtype: npt.DTypeLike) -> npt.NDArray[Any]:
        """Returns a zeroed, page-locked host array, the source or target of copies."""

    def fill(self, address: int, size: int) -> None:
        """Sets `size` bytes to zero."""

    def copy(
        self, target: int, target_pitch: int, source: int, source_pitch: int, width: int, rows: int
    ) -> None:
        """Copies `rows` runs of `width` bytes from device to device; a pitch is the number of bytes
        from the start of one run to the next."""

    def write(self, address: int, array: npt.NDArray[Any]) -> None:
        """Copies an array made by `host` to the device."""

    def read(self, array: npt.NDArray[Any], address: int) -> None:
        """Copies from the device into an array made by `host`."""

    def capture(self, record: Callable[[], None]) -> Callable[[], None]:
        """Records the operations that `record` enqueues, without running them.

        Returns a function that runs them, any number of times.
        """

    def finish(self) -> None:
        """Waits until all operations of the stream are done."""


def free_memory(device: GpuDevice) -> Callable[[], int]:
    """Returns a function that returns the device's free bytes."""
    return lambda: device.memory()[0]


def load_cuda() -> ModuleType:
    """Returns cuda-python's runtime module. Raises `EngineError` if it is not installed."""
    for name in MODULES:
        try:
            return importlib.import_module(name)
        except ImportError:
            continue
    raise EngineError(
        "cuda-python is not installed, which keeps the KV cache in the GPU's memory; "
        "install 'edgespec[cuda]'"
    )


class Runtime:
    """Calls functions of cuda-python's module and turns their error codes into `EngineError`."""

    def __init__(self, module: Any | None = None) -> None:
        self.module = load_cuda() if module is None else module

    def __call__(self, function: str, *arguments: Any) -> Any:
        """Returns the function's values without its error code. Raises `EngineError`."""
        code, *values = getattr(self.module, function)(*arguments)
        if int(code):
            raise EngineError(self._sentence(function, code))
        return values[0] if len(values) == 1 else tuple(values)

    def _sentence(self, function: str, code: Any) -> str:
        name = self._text("cudaGetErrorName", code)
        help = _HELP.get(name) or self._text("cudaGetErrorString", code)
        return f"CUDA failed in {function} ({name}): {help}"

    def _text(self, function: str, code: Any) -> str:
        found = getattr(self.module, function)(code)[1]
        return found.decode() if isinstance(found, bytes) else str(found)


def count(runtime: Runtime) -> int:
    """Returns the number of GPUs. Raises `EngineError` without a driver."""
    return int(runtime("cudaGetDeviceCount"))


class CudaBuffer:
    def __init__(self, runtime: Runtime, size: int, stream: int) -> None:
        self.size = size
        try:
            self.address = int(runtime("cudaMalloc", size))
        except EngineError as error:
            asked = f"asked for {size / BYTES_PER_MB:.1f} MB"
            raise EngineError(f"{error} ({asked}{_free_of_total(runtime)})") from error
        weakref.finalize(self, _free, runtime.module, self.address, stream)


def _free(module: Any, address: int, stream: int) -> None:
    """Frees memory after the stream's pending operations. Ignores errors; `finish` reports them."""
    module.cudaStreamSynchronize(stream)
    module.cudaFree(address)


def _free_of_total(runtime: Runtime) -> str:
    try:
        free, total = runtime("cudaMemGetInfo")
    except EngineError:
        return ""
    return f"; {free / BYTES_PER_MB:.0f} of {total / BYTES_PER_MB:.0f} MB are free"


class CudaDevice:
    """One GPU. Raises `EngineError` if there is no GPU or no driver."""

    place = "cuda"

    def __init__(self, number: int = 0, runtime: Runtime | None = None) -> None:
        self._call = runtime or Runtime()
        there = count(self._call)
        if number >= there:
            raise EngineError(f"there is no GPU {number}: this process may use {there}")
        self._call("cudaSetDevice", number)
        about = self._call("cudaGetDeviceProperties", number)
        self.name = about.name.decode() if isinstance(about.name, bytes) else str(about.name)
        self.capability = (int(about.major), int(about.minor))
        kinds = self._call.module.cudaMemcpyKind
        self._across = kinds.cudaMemcpyDeviceToDevice
        self._up, self._down = kinds.cudaMemcpyHostToDevice, kinds.cudaMemcpyDeviceToHost
        # A non-blocking stream does not wait for the default stream, which a capture forbids.
        flags = self._call.module.cudaStreamNonBlocking
        self.stream = int(self._call("cudaStreamCreateWithFlags", flags))

    def memory(self) -> tuple[int, int]:
        free, total = self._call("cudaMemGetInfo")
        return int(free), int(total)

    def allocate(self, size: int) -> CudaBuffer:
        return CudaBuffer(self._call, max(size, 1), self.stream)

    def host(self, shape: tuple[int, ...], dtype: npt.DTypeLike) -> npt.NDArray[Any]:
        kind = np.dtype(dtype)
        size = math.prod(shape) * kind.itemsize
        address = int(self._call("cudaMallocHost", max(size, 1)))
        memory = (ctypes.c_uint8 * size).from_address(address)
        weakref.finalize(memory, self._call.module.cudaFreeHost, address)
        ctypes.memset(address, 0, size)
        return np.ctypeslib.as_array(memory).view(kind).reshape(shape)

    def fill(self, address: int, size: int) -> None:
        self._call("cudaMemsetAsync", address, 0, size, self.stream)

    def copy(
        self, target: int, target_pitch: int, source: int, source_pitch: int, width: int, rows: int
    ) -> None:
        shape = (target, target_pitch, source, source_pitch, width, rows)
        self._call("cudaMemcpy2DAsync", *shape, self._across, self.stream)

    def write(self, address: int, array: npt.NDArray[Any]) -> None:
        about = (address, array.ctypes.data, array.nbytes)
        self._call("cudaMemcpyAsync", *about, self._up, self.stream)

    def read(self, array: npt.NDArray[Any], address: int) -> None:
        about = (array.ctypes.data, address, array.nbytes)
        self._call("cudaMemcpyAsync", *about, self._down, self.stream)

    def capture(self, record: Callable[[], None]) -> Callable[[], None]:
        mode = self._call.module.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
        self._call("cudaStreamBeginCapture", self.stream, mode)
        try:
            record()
        except EngineError:
            self._call.module.cudaStreamEndCapture(self.stream)
            raise
        graph = self._call("cudaStreamEndCapture", self.stream)
        try:
            return _Recorded(self._call, self._call("cudaGraphInstantiate", graph, 0), self.stream)
        finally:
            self._call("cudaGraphDestroy", graph)

    def finish(self) -> None:
        self._call("cudaStreamSynchronize", self.stream)


class _Recorded:
    """An instantiated CUDA graph; calling it launches the graph."""

    def __init__(self, runtime: Runtime, graph: Any, stream: int) -> None:
        self._call, self._graph, self._stream = runtime, graph, stream
        weakref.finalize(self, runtime.module.cudaGraphExecDestroy, graph)

    def __call__(self) -> None:
        self._call("cudaGraphLaunch", self._graph, self._stream)
