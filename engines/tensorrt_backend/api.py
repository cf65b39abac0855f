"""The only module that imports TensorRT: `tensorrt` 10.3 and 11, and `tensorrt_rtx`.

The three packages share an API. They differ in these points:

| | 10.3 (JetPack 6) | 11.4 (JetPack 7) | RTX 1.7 |
|---|---|---|---|
| strongly typed network | a flag | always | always |
| operators of opset 24 | none: opset-21 graphs only | all | all |
| int8 in blocks | refused, see `takes_int8_blocks` | the same | taken |
| timing cache | yes | yes | a deprecated no-op |
| builds without a GPU | no | no | yes |
| an engine runs on | the GPU model it was built on | the same | SM 8.0 and later |

Sources: NVIDIA's migration guide 10.x to 11.x (weak typing and the precision flags are gone;
docs.nvidia.com/deeplearning/tensorrt/latest/api/migration); release notes 10.14 (`IAttention`),
10.15 (`IKVCacheUpdateLayer`, `IRotaryEmbeddingLayer`) and 11.0 (`Swish` in the parser);
onnx-tensorrt's operators.md of 10.x (opset 9 to 20); the RTX guide on building without a GPU
(default targets 8.0, 8.6, 8.9 and 12.0 on); docstrings of tensorrt_rtx 1.7.1 and experiments with
it. Support for an operator is read from the parser, not derived from a version. Only RTX has been
run for this project, and only to build.
"""

from __future__ import annotations

import ctypes
import importlib
import platform
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from itertools import takewhile
from typing import Any, BinaryIO, Protocol, get_args

from edgespec.errors import EngineError
from edgespec.manifest import TensorrtApi

MODULES: tuple[TensorrtApi, ...] = get_args(TensorrtApi)
_CAPABILITY_MAJOR, _CAPABILITY_MINOR = 75, 76
"""CUDA driver API, `CUdevice_attribute`."""


@dataclass(frozen=True)
class Installation:
    """An installed TensorRT and its machine: the facts that an engine depends on."""

    api: TensorrtApi
    version: str
    capability: str
    """Compute capability of the first GPU, such as 8.7; empty without a GPU."""
    platform: str

    @property
    def name(self) -> str:
        return f"{'TensorRT' if self.api == 'tensorrt' else 'TensorRT-RTX'} {self.version}"

    @property
    def numbers(self) -> tuple[int, ...]:
        """Parts of the version, for comparisons."""
        return version_numbers(self.version)

    @property
    def tied(self) -> str:
        """Compute capability that engines built here require; empty for RTX, whose require none."""
        return self.capability if self.api == "tensorrt" else ""

    @property
    def takes_int8_blocks(self) -> bool:
        """True if `DequantizeLinear` may have int8 in blocks.

        The classic builder answers "Block quantization is supported only for DataType::kINT4", and
        has no int8 weight-only product.
        """
        return self.api == "tensorrt_rtx"

    @property
    def keeps_timings(self) -> bool:
        """True if the timing cache has an effect."""
        return self.api == "tensorrt"


def version_numbers(version: str) -> tuple[int, ...]:
    """Returns the numbers of a version such as `10.3.0.30`, up to the first part without one."""
    return tuple(map(int, takewhile(str.isdigit, version.split("."))))


def load() -> Any:
    """Imports `tensorrt` if it is installed, else `tensorrt_rtx`. Raises `EngineError`."""
    broken = ""
    for name in MODULES:
        try:
            return importlib.import_module(name)
        except ModuleNotFoundError:
            continue
        except (ImportError, OSError) as error:
            broken = f"; {name} is there but does not load: {one_line(str(error))}"
    raise EngineError(
        "TensorRT is not installed; on a Jetson it comes with JetPack (python3-libnvinfer, which a "
        "virtual environment sees with --system-site-packages), elsewhere with the extra "
        f"'tensorrt' or 'tensorrt-rtx'{broken}"
    )


def installation(trt: Any) -> Installation:
    """Returns the facts of an imported TensorRT and of this machine."""
    api: TensorrtApi = "tensorrt_rtx" if trt.__name__ == "tensorrt_rtx" else "tensorrt"
    return Installation(
        api, str(trt.__version__), compute_capability(), f"{sys.platform}-{platform.machine()}"
    )


def compute_capability() -> str:
    """Returns the first GPU's compute capability from the CUDA driver; empty without a GPU."""
    try:
        cuda = ctypes.CDLL("libcuda.so.1")
        device = ctypes.c_int()
        if cuda.cuInit(0) or cuda.cuDeviceGet(ctypes.byref(device), 0):
            return ""
        found = []
        for attribute in (_CAPABILITY_MAJOR, _CAPABILITY_MINOR):
            number = ctypes.c_int()
            if cuda.cuDeviceGetAttribute(ctypes.byref(number), attribute, device):
                return ""
            found.append(str(number.value))
    except (OSError, AttributeError):
        return ""
    return ".".join(found)


class Log(Protocol):
    """A `trt.ILogger` that keeps errors instead of printing them."""

    errors: list[str]

    def last(self) -> str:
        """Returns the last error in one line; empty if there was none.

        Returns an error of CUDA only if there is no other: without a GPU there is always one.
        """


@cache
def log(trt: Any) -> Log:
    """Returns the process's logger. TensorRT keeps using the first logger that it gets."""

    class _Log(trt.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.errors: list[str] = []

        def log(self, severity: Any, message: str) -> None:
            if severity in (trt.ILogger.Severity.ERROR, trt.ILogger.Severity.INTERNAL_ERROR):
                self.errors.append(message)

        def last(self) -> str:
            others = [message for message in self.errors if "Cuda Runtime" not in message]
            return one_line((others or self.errors or [""])[-1])

    return _Log()


def make_builder(trt: Any) -> Any:
    """Makes a `trt.Builder`. Raises `EngineError` if it needs a GPU or driver that is missing."""
    log(trt).errors.clear()
    try:
        builder = trt.Builder(log(trt))
    except (TypeError, RuntimeError) as error:  # pybind11 raises them for a null pointer
        here = installation(trt)
        gpu = f"the GPU is of {here.capability}" if here.capability else "no GPU answers"
        raise EngineError(
            f"{here.name} cannot build engines here ({gpu}): {log(trt).last() or error}"
        ) from error
    return builder


def make_network(trt: Any, builder: Any) -> Any:
    """Makes a strongly typed network: it keeps the types of the graph."""
    flag = getattr(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)
    return builder.create_network(0 if flag is None else 1 << int(flag))


def build_into(trt: Any, builder: Any, network: Any, config: Any, file: BinaryIO) -> bool:
    """Builds an engine and writes it to `file`. Returns False if the build failed.

    Streams the engine if TensorRT can (RTX does), so that it is not held in memory. Raises
    `OSError` if writing fails.
    """
    if not hasattr(builder, "build_serialized_network_to_stream"):
        plan = builder.build_serialized_network(network, config)
        if plan is None:
            return False
        file.write(memoryview(plan))
        return True
    failed: list[OSError] = []

    class _Writer(trt.IStreamWriter):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.IStreamWriter.__init__(self)

        def write(self, data: bytes) -> int:
            try:
                return file.write(data)
            except OSError as error:  # an exception must not unwind through C++
                failed.append(error)
                return 0

    made = builder.build_serialized_network_to_stream(network, config, _Writer())
    if failed:
        raise failed[0]
    return bool(made)


def one_line(text: str, max_characters: int = 400) -> str:
    """Returns a message of TensorRT as one line, without source locations and function names."""
    line = " ".join(text.split())
    line = re.sub(r"\s*\(?\bIn \S+ at /.*", "", line)
    line = re.sub(
        r"^(\[\S+\] )?(Invalid Node - \S+ )?([\w:]+: )?(Error Code \d+: [\w ]+ \()?", "", line
    )
    return line.rstrip(".") if len(line) <= max_characters else f"{line[: max_characters - 1]}…"


class Monitor(Protocol):
    """A `trt.IProgressMonitor`."""

    cancelled: bool
    """Setting it to True ends the build after its current step."""


def make_monitor(trt: Any, tell: Callable[[str], None]) -> Monitor:
    """Makes a monitor that calls `tell`, from any thread, with a phase and its progress, such as
    `timing graph nodes 40%`."""

    class _Monitor(trt.IProgressMonitor):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)
            self.cancelled = False
            self._steps: dict[str, int] = {}

        def phase_start(self, name: str, _parent: str | None, steps: int) -> None:
            self._steps[name] = max(1, steps)

        def step_complete(self, name: str, step: int) -> bool:
            steps = self._steps.get(name, 1)
            tell(f"{name.lower()} {100 * min(step + 1, steps) // steps}%")
            return not self.cancelled

        def phase_finish(self, name: str) -> None:
            pass

    return _Monitor()
