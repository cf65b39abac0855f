"""The software and the GPUs that are there, for `edgespec doctor`. Nothing is required, and no CUDA
library is loaded."""

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
"""Modules, and the distributions that may have brought them."""
_QUERIES = ("name,memory.total,driver_version,compute_cap", "name,memory.total,driver_version")
"""Of `nvidia-smi`; drivers older than about 510 do not know the last field."""


@dataclass(frozen=True)
class Gpu:
    name: str
    memory: str = ""
    """As the driver writes it, with its unit; empty where CPU and GPU share their memory."""
    driver: str = ""
    capability: str = ""
    """CUDA compute capability."""

    def __str__(self) -> str:
        known = (self.name, self.memory, self.driver and f"driver {self.driver}")
        tail = (self.capability and f"compute capability {self.capability}",)
        return ", ".join(filter(None, known + tail))


def system() -> str:
    try:
        name = platform.freedesktop_os_release()["PRETTY_NAME"]
    except (OSError, KeyError):
        return platform.platform()
    return f"{name} ({platform.system()} {platform.release()})"


def onnxruntime() -> tuple[str, tuple[str, ...]]:
    """Version and execution providers."""
    try:
        import onnxruntime
    except ImportError:
        return "", ()
    return str(onnxruntime.__version__), tuple(onnxruntime.get_available_providers())


def tensorrt() -> dict[str, str]:
    """Versions by module, found without importing them."""
    return {module: _version(names) for module, names in _TENSORRT.items() if _is_there(module)}


def gpus() -> tuple[Gpu, ...]:
    """What `nvidia-smi` lists. It is given five seconds a question."""
    program = shutil.which("nvidia-smi")
    for fields in _QUERIES if program else ():
        query = [str(program), f"--query-gpu={fields}", "--format=csv,noheader"]
        try:
            answer = subprocess.run(query, capture_output=True, text=True, timeout=5, check=True)
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
