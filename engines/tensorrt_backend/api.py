"""The one module that imports TensorRT: `tensorrt` 10.3 and 11, and `tensorrt_rtx`.

The three share an API. What differs, and is dealt with here or by whoever asks here:

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
(default targets 8.0, 8.6, 8.9 and 12.0 on); docstrings and tries of tensorrt_rtx 1.7.1. Which
operators a parser has is asked of the parser, not of its version. Of the three only RTX has been
run for this project, and only to build.
"""

from __future__ import annotations

import ctypes
import importlib
import platform
import re
import shlex
import sys
from collections.abc import Callable, Collection
from dataclasses import dataclass
from functools import cache
from itertools import takewhile
from typing import Any, BinaryIO, Protocol, get_args

from edgespec.errors import EngineError
from edgespec.manifest import Built, Bundle, HalfFloat, Manifest, TensorrtApi

MODULES: tuple[TensorrtApi, ...] = get_args(TensorrtApi)
_CAPABILITY_MAJOR, _CAPABILITY_MINOR = 75, 76
"""CUDA driver API, `CUdevice_attribute`."""


@dataclass(frozen=True)
class Installation:
    """A TensorRT and the machine that it is on: what an engine depends on."""

    api: TensorrtApi
    version: str
    capability: str
    """Of the first GPU, as in 8.7; empty without one."""
    platform: str

    @property
    def name(self) -> str:
        return f"{'TensorRT' if self.api == 'tensorrt' else 'TensorRT-RTX'} {self.version}"

    @property
    def numbers(self) -> tuple[int, ...]:
        """Of the version, for comparing."""
        return version_numbers(self.version)

    @property
    def tied(self) -> str:
        """The compute capability that engines built here are tied to; RTX's are to none."""
        return self.capability if self.api == "tensorrt" else ""

    @property
    def takes_int8_blocks(self) -> bool:
        """Whether `DequantizeLinear` may have int8 in blocks. The classic builder answers «Block
        quantization is supported only for DataType::kINT4», and has no int8 weight-only product."""
        return self.api == "tensorrt_rtx"

    @property
    def keeps_timings(self) -> bool:
        return self.api == "tensorrt"


def version_numbers(version: str) -> tuple[int, ...]:
    """`10.3.0.30` as numbers, up to the first part that is none."""
    return tuple(map(int, takewhile(str.isdigit, version.split("."))))


def load() -> Any:
    """`tensorrt` where it is installed, else `tensorrt_rtx`. Raises `EngineError`."""
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
    api: TensorrtApi = "tensorrt_rtx" if trt.__name__ == "tensorrt_rtx" else "tensorrt"
    return Installation(
        api, str(trt.__version__), compute_capability(), f"{sys.platform}-{platform.machine()}"
    )


def compute_capability() -> str:
    """Of the first GPU, asked of the CUDA driver; empty where there is none."""
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
        """What went wrong, in one line; empty if nothing did. What CUDA says only if nobody else
        does: on a machine without a GPU it always has something to say."""


@cache
def log(trt: Any) -> Log:
    """One a process: TensorRT goes on with the first that it was given."""

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
    """A `trt.Builder`. Raises `EngineError` where there is no GPU to build for, or no driver."""
    log(trt).errors.clear()
    try:
        builder = trt.Builder(log(trt))
    except (TypeError, RuntimeError) as error:  # what pybind11 makes of a null pointer
        here = installation(trt)
        gpu = f"the GPU is of {here.capability}" if here.capability else "no GPU answers"
        raise EngineError(
            f"{here.name} cannot build engines here ({gpu}): {log(trt).last() or error}"
        ) from error
    return builder


def make_network(trt: Any, builder: Any) -> Any:
    """A strongly typed network: types are those of the graph."""
    flag = getattr(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)
    return builder.create_network(0 if flag is None else 1 << int(flag))


def build_into(trt: Any, builder: Any, network: Any, config: Any, file: BinaryIO) -> bool:
    """Builds, and writes the engine to `file`; whether there is one.

    It is written as it is made where TensorRT can (RTX does), which saves holding it in memory.
    Raises `OSError` where the disk refuses.
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
            except OSError as error:  # which must not unwind through C++
                failed.append(error)
                return 0

    made = builder.build_serialized_network_to_stream(network, config, _Writer())
    if failed:
        raise failed[0]
    return bool(made)


def one_line(text: str, most: int = 400) -> str:
    """What a message of TensorRT says, for a sentence: without places in its sources, the names of
    its functions, and what it says after that."""
    line = " ".join(text.split())
    line = re.sub(r"\s*\(?\bIn \S+ at /.*", "", line)
    line = re.sub(
        r"^(\[\S+\] )?(Invalid Node - \S+ )?([\w:]+: )?(Error Code \d+: [\w ]+ \()?", "", line
    )
    return line.rstrip(".") if len(line) <= most else f"{line[: most - 1]}…"


def rebuild_command(bundle: Bundle, graph: str, profile: str) -> str:
    """What makes the engines of `graph` for `profile` again, as they were; of a target's, all."""
    of_draft = graph.startswith("draft/")
    again = [
        engine
        for engine in bundle.manifest.engines
        if engine.profile == profile
        and (engine.graph == graph if of_draft else not engine.graph.startswith("draft/"))
    ]
    by_floats: dict[HalfFloat, set[int]] = {}
    for engine in again:
        by_floats.setdefault(engine.floats, set()).add(engine.capacity)
    commands = [
        _build_command(bundle, graph, profile, floats, capacities)
        for floats, capacities in by_floats.items()
    ]
    return " && ".join(commands) or _build_command(bundle, graph, profile)


def _build_command(
    bundle: Bundle,
    graph: str,
    profile: str,
    floats: HalfFloat | None = None,
    capacities: Collection[int] = (),
) -> str:
    """For a shell. What is not given is left to the command."""
    draft = graph.split("/")[1] if graph.startswith("draft/") else ""
    words = ["edgespec", "build", str(bundle.folder), "--profile", profile]
    words += ["--graphs", "draft", "--draft", draft] if draft else ["--graphs", "target"]
    words += ["--floats", floats] if floats else []
    for capacity in sorted(set(capacities) - {0}):
        words += ["--capacity", str(capacity)]
    return shlex.join(words)


def mismatch(engine: Built, manifest: Manifest, here: Installation) -> str:
    """Why `engine` cannot run here, or is of another graph, as a clause; empty if it can."""
    for path, digest in engine.sources.items():
        if path not in manifest.files or manifest.files[path].sha256 != digest:
            return f"was built from another {path}"
    theirs = Installation(engine.api, engine.version, "", "").name
    if theirs != here.name:
        return f"was built by {theirs}, and this machine has {here.name}"
    if engine.platform != here.platform:
        return f"was built on {engine.platform}, and this is {here.platform}"
    if engine.capability and engine.capability != here.capability:
        there = f"this one is of {here.capability}" if here.capability else "none answers here"
        return f"was built for a GPU of compute capability {engine.capability}, and {there}"
    return ""


def matching_engine(
    bundle: Bundle, graph: str, capacity: int, profile: str, here: Installation
) -> Built:
    """The engine of `graph` for slots of `capacity` positions; any if the graph has no KV cache.

    Raises `EngineError` naming what does not match, and the command that builds it again for
    `profile`.
    """
    of_graph = [engine for engine in bundle.manifest.engines if engine.graph == graph]
    for engine in of_graph:
        if engine.capacity in (0, capacity):
            reason = mismatch(engine, bundle.manifest, here)
            if not reason:
                return engine
            raise EngineError(
                f"{bundle.path(engine.file)} {reason}; build it again: "
                f"{rebuild_command(bundle, graph, engine.profile)}"
            )
    there = ", ".join(str(engine.capacity) for engine in of_graph)
    what = f"for {capacity} positions (there are: {there})" if there else f"of {graph}"
    asked = (of_graph[0].floats, (capacity,)) if of_graph else (None, ())
    raise EngineError(
        f"{bundle.folder} has no engine {what}; build it: "
        f"{_build_command(bundle, graph, profile, *asked)}"
    )


class Monitor(Protocol):
    """A `trt.IProgressMonitor`."""

    cancelled: bool
    """Set it, and the build ends after its current step."""


def make_monitor(trt: Any, tell: Callable[[str], None]) -> Monitor:
    """`tell` gets a phase and how far it is, as in `timing graph nodes 40%`, from any thread."""

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
