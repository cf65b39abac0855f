"""Installed software and GPUs, for `edgespec doctor`. Loads no CUDA library."""

from __future__ import annotations

import contextlib
import importlib.metadata
import importlib.util
import platform
import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

_TENSORRT: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "tensorrt": ("tensorrt", "tensorrt-cu12", "tensorrt-cu13"),
        "tensorrt_rtx": ("tensorrt-rtx", "tensorrt-rtx-cu12", "tensorrt-rtx-cu13"),
    }
)
"""Modules of TensorRT, and the distributions that may contain them."""
_QUERIES = ("name,memory.total,driver_version,compute_cap", "name,memory.total,driver_version")
"""Queries of `nvidia-smi`; drivers older than about 510 do not know the last field."""
QUERY_TIMEOUT_S = 5.0


@dataclass(frozen=True)
class Gpu:
    """A GPU according to its driver."""

    name: str
    memory: str = ""
    """Memory with its unit, as the driver writes it; empty if CPU and GPU share their memory."""
    driver: str = ""
    capability: str = ""
    """CUDA compute capability."""

    def __str__(self) -> str:
        known = (self.name, self.memory, self.driver and f"driver {self.driver}")
        tail = (self.capability and f"compute capability {self.capability}",)
        return ", ".join(filter(None, known + tail))


def system() -> str:
    """Returns name and version of the operating system."""
    try:
        name = platform.freedesktop_os_release()["PRETTY_NAME"]
    except (OSError, KeyError):
        return platform.platform()
    return f"{name} ({platform.system()} {platform.release()})"


def onnxruntime() -> tuple[str, tuple[str, ...]]:
    """Returns ONNX Runtime's version and execution providers; empty if it is not installed."""
    try:
        import onnxruntime
    except ImportError:
        return "", ()
    return str(onnxruntime.__version__), tuple(onnxruntime.get_available_providers())


def tensorrt() -> dict[str, str]:
    """Returns the versions of TensorRT by module, without importing them."""
    return {module: _version(names) for module, names in _TENSORRT.items() if _is_there(module)}


def llamacpp() -> str:
    """Returns the version of llama.cpp's bindings, without importing them; empty if missing."""
    return _version(("llama-cpp-python",)) if _is_there("llama_cpp") else ""


def gpus() -> tuple[Gpu, ...]:
    """Returns the GPUs that `nvidia-smi` lists. A query may take `QUERY_TIMEOUT_S`."""
    program = shutil.which("nvidia-smi")
    for fields in _QUERIES if program else ():
        query = [str(program), f"--query-gpu={fields}", "--format=csv,noheader"]
        try:
            answer = subprocess.run(
                query, capture_output=True, text=True, timeout=QUERY_TIMEOUT_S, check=True
            )
        except (OSError, subprocess.SubprocessError):
            continue
        return tuple(_gpu(line) for line in answer.stdout.splitlines() if line.strip())
    return ()


def _gpu(line: str) -> Gpu:
    fields = [field.strip() for field in line.split(",")]
    return Gpu(*("" if field.startswith("[") else field for field in fields[:4]))


def _is_there(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except (ImportError, ValueError):
        return False


def _version(distributions: tuple[str, ...]) -> str:
    for name in distributions:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            return importlib.metadata.version(name)
    return "of unknown version"
