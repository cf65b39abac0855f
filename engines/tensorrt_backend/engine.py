"""A loaded TensorRT engine: its inputs and outputs, and contexts for its optimisation profiles.

Contexts have no scratch memory of their own (`ExecutionContextAllocationStrategy.USER_MANAGED`).
They run one after the other on one stream, so they share the memory that the largest one needs. A
context keeps its shapes and addresses until it is bound to others.

The API is the same in `tensorrt` 10.3 and 11 and `tensorrt_rtx` 1.7 (their docstrings; NVIDIA's
guide to the C++ and Python runtime). Nothing here has run on a GPU.
"""

from __future__ import annotations

import math
import mmap
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from edgespec.errors import EngineError
from engines.cache.device_memory import DeviceArray
from engines.tensorrt_backend.api import installation, log, one_line

BFLOAT16 = "BF16"
_DTYPES: Mapping[str, Any] = {
    "FLOAT": np.float32,
    "HALF": np.float16,
    BFLOAT16: np.uint16,  # numpy lacks the type; these are the bits
    "INT64": np.int64,
    "INT32": np.int32,
}
Dims = tuple[int, ...]


class Port(NamedTuple):
    """An input or output of an engine; -1 in `shape` is a dimension that varies between calls."""

    name: str
    dtype: np.dtype[Any]
    shape: Dims
    bfloat16: bool


class ShapeRange(NamedTuple):
    """Shapes of an input that an optimisation profile takes; it is tuned for the usual one."""

    smallest: Dims
    usual: Dims
    largest: Dims

    def takes(self, shape: Dims) -> bool:
        """Return True if every axis is within the range."""
        sizes = zip(self.smallest, shape, self.largest, strict=True)
        return all(low <= size <= high for low, size, high in sizes)


class LoadedEngine:
    """An engine, its ports by name, and the shapes that its optimisation profiles take."""

    def __init__(self, trt: Any, path: Path, rebuild: str) -> None:
        """`rebuild` is the command that rebuilds the engine. Raises `EngineError`."""
        self._trt, self._path, self._rebuild = trt, path, rebuild
        log(trt).errors.clear()
        self._runtime = trt.Runtime(log(trt))
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            self._engine = self._runtime.deserialize_cuda_engine(data)
        if self._engine is None:
            raise self.failed("cannot load it")
        ports = [self._port(number) for number in range(self._engine.num_io_tensors)]
        self.inputs = {port.name: port for is_input, port in ports if is_input}
        self.outputs = {port.name: port for is_input, port in ports if not is_input}
        self._ranges = [self._range(n) for n in range(self._engine.num_optimization_profiles)]

    @property
    def scratch(self) -> int:
        """Bytes of scratch memory that a context needs while it runs."""
        return int(self._engine.device_memory_size_v2)

    @property
    def unaliased(self) -> list[str]:
        """Cache outputs that the engine does not declare as aliases of their inputs.

        TensorRT declares the alias for a KV update layer, and not for a scatter in plain operators.
        Versions before 10.15 cannot declare it.
        """
        ask = getattr(self._engine, "get_aliased_input_tensor", None)
        caches = [name for name in self.outputs if name.startswith("cache_")]
        return [n for n in caches if ask is None or ask(n) != n.removesuffix(".out")]

    @property
    def profiles(self) -> int:
        """Number of optimisation profiles."""
        return len(self._ranges)

    def context(self, profile: int, scratch: DeviceArray, stream: int) -> EngineContext:
        """Makes a context for a profile. Raises `EngineError` if that fails."""
        strategy = self._trt.ExecutionContextAllocationStrategy.USER_MANAGED
        context = self._engine.create_execution_context(strategy)
        if context is None:
            raise self.failed("makes no context")
        context.set_device_memory(scratch.address, scratch.nbytes)
        if not context.set_optimization_profile_async(profile, stream):
            raise self.failed(f"does not take its optimisation profile {profile}")
        return EngineContext(self, context)

    def largest(self, name: str, axis: int, at_least: Mapping[int, int] | None = None) -> int:
        """Returns the largest size of an axis of input `name` that any profile takes.

        Only profiles count that take the sizes `at_least` (by axis) in other axes; 0 if none does.
        """
        largest = [ranges[name].largest for ranges in self._ranges]
        others = (at_least or {}).items()
        return max((d[axis] for d in largest if all(d[o] >= size for o, size in others)), default=0)

    def profile(self, shapes: Mapping[str, Dims]) -> int:
        """Returns the profile that takes inputs of these shapes and is tuned for the most similar
        ones. Raises `EngineError` if no profile takes them."""
        fitting = [
            (sum(_distance(shapes[name], range.usual) for name, range in ranges.items()), number)
            for number, ranges in enumerate(self._ranges)
            if all(range.takes(shapes[name]) for name, range in ranges.items())
        ]
        if not fitting:
            call = ", ".join(f"{name} {list(shape)}" for name, shape in shapes.items())
            raise EngineError(
                f"{self._path} takes no call of {call}; build it for larger ones: {self._rebuild}"
            )
        return min(fitting)[1]

    def _port(self, number: int) -> tuple[bool, Port]:
        name = self._engine.get_tensor_name(number)
        kind = self._engine.get_tensor_dtype(name).name
        if kind not in _DTYPES:
            raise EngineError(f"{self._path} has {name} of {kind}; build it again: {self._rebuild}")
        shape = tuple(self._engine.get_tensor_shape(name))
        mode = self._engine.get_tensor_mode(name)
        port = Port(name, np.dtype(_DTYPES[kind]), shape, kind == BFLOAT16)
        return mode == self._trt.TensorIOMode.INPUT, port

    def _range(self, profile: int) -> dict[str, ShapeRange]:
        """Returns the shapes of each input that a profile takes."""
        shape = self._engine.get_tensor_profile_shape
        return {name: ShapeRange(*map(tuple, shape(name, profile))) for name in self.inputs}

    def failed(self, what: str) -> EngineError:
        """Returns an error with TensorRT's reason and the command that rebuilds the engine."""
        here = installation(self._trt).name
        why = one_line("; ".join(log(self._trt).errors)) or "it says no more"
        return EngineError(f"{self._path}: {here} {what} ({why}); build it again: {self._rebuild}")


class EngineContext:
    """An execution context of an engine, with the tensors that it is bound to."""

    def __init__(self, engine: LoadedEngine, context: Any) -> None:
        self._engine, self._context = engine, context
        self._bound: object = None

    def bind(self, key: object, tensors: Mapping[str, DeviceArray]) -> None:
        """Binds inputs and outputs by name, unless the last call had the same `key` object.

        Raises `EngineError` if TensorRT refuses a shape or an address.
        """
        if self._bound is key:
            return
        self._bound = None
        engine = self._engine
        for name in engine.inputs:
            if not self._context.set_input_shape(name, tensors[name].shape):
                raise engine.failed(f"refuses {name} of {list(tensors[name].shape)}")
        for name in [*engine.inputs, *engine.outputs]:
            array = tensors[name.removesuffix(".out") if name.startswith("cache_") else name]
            if not self._context.set_tensor_address(name, array.address):
                raise engine.failed(f"refuses the memory of {name}")
        missing = self._context.infer_shapes()
        if missing:
            raise engine.failed(f"lacks {', '.join(missing)}")
        self._bound = key

    def enqueue(self, stream: int) -> None:
        """Enqueues a run over the bound tensors. Raises `EngineError`."""
        if not self._context.execute_async_v3(stream):
            raise self._engine.failed("failed")

    def check_recordable(self, stream: int) -> None:
        """Raises `EngineError` if the run cannot be recorded. Only TensorRT-RTX can tell."""
        ask = getattr(self._context, "is_stream_capturable", None)
        if ask is not None and not ask(stream):
            raise self._engine.failed("says that its runs cannot be recorded")


def _distance(shape: Dims, usual: Dims) -> float:
    return sum(abs(math.log(a / b)) for a, b in zip(shape, usual, strict=True))
