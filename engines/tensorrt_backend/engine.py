"""One TensorRT engine, loaded: its tensors, and a context for each optimisation profile.

Contexts bring no scratch memory of their own. All of them run one after the other on one stream, so
they share what the largest needs (`ExecutionContextAllocationStrategy.USER_MANAGED`). Shapes and
addresses stay in a context until it is bound otherwise.

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
    BFLOAT16: np.uint16,  # numpy has no such type; the bits
    "INT64": np.int64,
    "INT32": np.int32,
}
Dims = tuple[int, ...]


class Port(NamedTuple):
    """An input or output; -1 stands for a dimension that a call decides."""

    name: str
    dtype: np.dtype[Any]
    shape: Dims
    bfloat16: bool


class LoadedEngine:
    def __init__(self, trt: Any, path: Path, again: str) -> None:
        """`again`: what makes this engine anew. Raises `EngineError` where it does not load."""
        self._trt, self._path, self._again = trt, path, again
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
        """Bytes that a context needs while it runs."""
        return int(self._engine.device_memory_size_v2)

    @property
    def unaliased(self) -> list[str]:
        """Cache outputs of which the engine does not say that they are their input, written in
        place. TensorRT says so of a KV update; of a scatter in plain operators it says nothing, and
        before 10.15 it had no word for it."""
        ask = getattr(self._engine, "get_aliased_input_tensor", None)
        caches = [name for name in self.outputs if name.startswith("cache_")]
        return [n for n in caches if ask is None or ask(n) != n.removesuffix(".out")]

    @property
    def profiles(self) -> int:
        """How many there are."""
        return len(self._ranges)

    def context(self, profile: int, scratch: DeviceArray, stream: int) -> EngineContext:
        """A new context for a profile. Raises `EngineError` where it gets no memory."""
        strategy = self._trt.ExecutionContextAllocationStrategy.USER_MANAGED
        context = self._engine.create_execution_context(strategy)
        if context is None:
            raise self.failed("makes no context")
        context.set_device_memory(scratch.address, scratch.nbytes)
        if not context.set_optimization_profile_async(profile, stream):
            raise self.failed(f"does not take its optimisation profile {profile}")
        return EngineContext(self, context)

    def most(self, name: str, axis: int, **given: int) -> int:
        """The largest dimension `axis` of input `name` that any profile takes, with the other axes
        of `given` (`axis0=…`) at least so large; 0 where none takes them."""
        wanted = {int(key.removeprefix("axis")): size for key, size in given.items()}
        return max(
            (
                ranges[name][2][axis]
                for ranges in self._ranges
                if all(ranges[name][2][other] >= size for other, size in wanted.items())
            ),
            default=0,
        )

    def profile(self, shapes: Mapping[str, Dims]) -> int:
        """The one that takes inputs of these shapes and is tuned for the most similar ones. Raises
        `EngineError` where there is none."""
        fitting = [
            (sum(_distance(shapes[name], span[1]) for name, span in ranges.items()), number)
            for number, ranges in enumerate(self._ranges)
            if all(_takes(span, shapes[name]) for name, span in ranges.items())
        ]
        if not fitting:
            told = ", ".join(f"{name} {list(shape)}" for name, shape in shapes.items())
            raise EngineError(
                f"{self._path} takes no call of {told}; build it for larger ones: {self._again}"
            )
        return min(fitting)[1]

    def _port(self, number: int) -> tuple[bool, Port]:
        name = self._engine.get_tensor_name(number)
        kind = self._engine.get_tensor_dtype(name).name
        if kind not in _DTYPES:
            raise EngineError(f"{self._path} has {name} of {kind}; build it again: {self._again}")
        shape = tuple(self._engine.get_tensor_shape(name))
        mode = self._engine.get_tensor_mode(name)
        port = Port(name, np.dtype(_DTYPES[kind]), shape, kind == BFLOAT16)
        return mode == self._trt.TensorIOMode.INPUT, port

    def _range(self, number: int) -> dict[str, list[Dims]]:
        """Smallest, usual and largest shape of each input."""
        shape = self._engine.get_tensor_profile_shape
        return {name: [tuple(dims) for dims in shape(name, number)] for name in self.inputs}

    def failed(self, what: str) -> EngineError:
        here = installation(self._trt).name
        why = one_line("; ".join(log(self._trt).errors)) or "it says no more"
        return EngineError(f"{self._path}: {here} {what} ({why}); build it again: {self._again}")


class EngineContext:
    def __init__(self, engine: LoadedEngine, context: Any) -> None:
        self._engine, self._context = engine, context
        self._bound: object = None

    def bind(self, key: object, tensors: Mapping[str, DeviceArray]) -> None:
        """Binds every input and output by name, unless `key` says that it is bound so already.
        Raises `EngineError`."""
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
        """Runs what is bound, some time later. Raises `EngineError`."""
        if not self._context.execute_async_v3(stream):
            raise self._engine.failed("failed")

    def check_recordable(self, stream: int) -> None:
        """Raises `EngineError` where TensorRT-RTX, which alone can tell, says that what is bound
        cannot be recorded."""
        ask = getattr(self._context, "is_stream_capturable", None)
        if ask is not None and not ask(stream):
            raise self._engine.failed("says that its runs cannot be recorded")


def _takes(span: list[Dims], shape: Dims) -> bool:
    smallest, _, largest = span
    return all(a <= b <= c for a, b, c in zip(smallest, shape, largest, strict=True))


def _distance(shape: Dims, usual: Dims) -> float:
    return sum(abs(math.log(a / b)) for a, b in zip(shape, usual, strict=True))
