"""What this machine can run: `edgespec doctor`.

Everything is read and nothing is required: what a system does not tell is reported as unknown. The
readers take the root of the file tree, so that they run on recorded ones.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import importlib.util
import platform
import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

from edgespec import profiles
from edgespec.config import usable_cores
from edgespec.profiles import runs_graphs

ROOT = Path("/")
UNKNOWN_FREE = 1 << 30
"""Bytes of memory taken to be free where the system does not say."""
SMALL_MEMORY_MB = 4096
"""Below this much memory a draft shares too little with everything else to be int8."""
FEATURES = (
    "avx2", "avx512f", "avx512_vnni", "avx_vnni", "avx512_bf16", "amx_int8",
    "asimd", "asimddp", "asimdhp", "i8mm", "bf16", "sve",
)  # fmt: skip
DOT_PRODUCTS = frozenset({"avx512_vnni", "avx_vnni", "amx_int8", "asimddp", "i8mm"})
"""CPU features that multiply int8 values four at a time."""
_ARM_PARTS: Mapping[str, str] = MappingProxyType(
    {
        "0xd03": "Cortex-A53",
        "0xd05": "Cortex-A55",
        "0xd08": "Cortex-A72",
        "0xd0a": "Cortex-A75",
        "0xd0b": "Cortex-A76",
        "0xd0c": "Neoverse N1",
        "0xd40": "Neoverse V1",
        "0xd41": "Cortex-A78",
        "0xd42": "Cortex-A78AE",
        "0xd44": "Cortex-X1",
        "0xd49": "Neoverse N2",
        "0xd4f": "Neoverse V2",
    }
)
_TENSORRT: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "tensorrt": ("tensorrt", "tensorrt-cu12", "tensorrt-cu13"),
        "tensorrt_rtx": ("tensorrt-rtx", "tensorrt-rtx-cu12", "tensorrt-rtx-cu13"),
    }
)
"""Modules, and the distributions that may have brought them."""


@dataclass(frozen=True)
class Processor:
    model: str = ""
    features: tuple[str, ...] = ()
    """Those of `FEATURES` that every core has."""


@dataclass(frozen=True)
class Memory:
    total_mb: int = 0
    available_mb: int = 0


@dataclass(frozen=True)
class Machine:
    """Empty strings, zeros and empty tuples stand for what could not be found out."""

    system: str = ""
    architecture: str = ""
    python: str = ""
    board: str = ""
    """As the device tree names it: Raspberry Pi, Jetson."""
    cores: int = 0
    """Usable by this process."""
    processor: Processor = Processor()
    memory: Memory = Memory()
    onnxruntime: str = ""
    providers: tuple[str, ...] = ()
    tensorrt: Mapping[str, str] = field(default_factory=dict)
    """Versions by module."""
    gpus: tuple[str, ...] = ()

    @property
    def runs_opset_24(self) -> bool:
        return runs_graphs(self.onnxruntime)

    @property
    def profile(self) -> tuple[str, str]:
        """The draft profile that fits, and why."""
        dots = sorted(DOT_PRODUCTS.intersection(self.processor.features))
        if "CUDAExecutionProvider" in self.providers and self.gpus:
            return "gpu-fp16", f"ONNX Runtime has CUDA and there is a GPU ({self.gpus[0]})"
        if 0 < self.memory.total_mb < SMALL_MEMORY_MB:
            return "cpu-int4", f"{self.memory.total_mb} MB of memory are little"
        if dots:
            return "cpu-int8", f"the CPU has int8 dot products ({', '.join(dots)})"
        if self.processor.features:
            return "cpu-fp32", "the CPU has no int8 dot products"
        return "cpu-fp32", "nothing is known of the CPU, and fp32 runs on any"

    def as_dict(self) -> dict[str, Any]:
        """Everything, ready for JSON."""
        profile, reason = self.profile
        return asdict(self) | {
            "runs_opset_24": self.runs_opset_24,
            "profile": profile,
            "reason": reason,
        }


def describe(root: Path = ROOT) -> Machine:
    """Looks at this machine. Raises nothing; a GPU is asked for at most five seconds."""
    version, providers = _onnxruntime()
    board = read_board(root)
    return Machine(
        system=_system(),
        architecture=platform.machine(),
        python=platform.python_version(),
        board=board,
        cores=usable_cores(),
        processor=read_processor(root),
        memory=read_memory(root),
        onnxruntime=version,
        providers=providers,
        tensorrt=_tensorrt(),
        gpus=_nvidia_smi() or ((board,) if "jetson" in board.lower() else ()),
    )


def brief(root: Path = ROOT) -> str:
    """This machine in a few words, read in no time: board or CPU, and cores."""
    name = read_board(root) or read_processor(root).model or platform.machine()
    cores = usable_cores()
    return f"{name}, {cores} core{'s' if cores != 1 else ''}"


def report(machine: Machine) -> str:
    """Lines for people."""
    profile, reason = machine.profile
    chosen = profiles.profile(profile)
    fits = "new enough" if machine.runs_opset_24 else "too old: the graphs need 1.25"
    memory = f"{machine.memory.total_mb} MB, {machine.memory.available_mb} MB available"
    tensorrt = [f"{module} {version}" for module, version in machine.tensorrt.items()]
    facts = {
        "system": f"{machine.system}, {machine.architecture}, Python {machine.python}",
        "board": machine.board or "none named",
        "CPU": machine.processor.model or "unknown",
        "cores": str(machine.cores or "unknown"),
        "CPU features": ", ".join(machine.processor.features) or "unknown",
        "memory": memory if machine.memory.total_mb else "unknown",
        "ONNX Runtime": f"{machine.onnxruntime} ({fits})" if machine.onnxruntime else "none",
        "providers": ", ".join(machine.providers) or "none",
        "TensorRT": ", ".join(tensorrt) or "none",
        "GPU": ", ".join(machine.gpus) or "none found",
        "profile": f"{profile}: {reason}",
        "": f"for {chosen.purpose}; {chosen.precisions}",
    }
    return "\n".join(f"{name:14}{fact}" for name, fact in facts.items())


def read_processor(root: Path = ROOT) -> Processor:
    """Model and features from `/proc/cpuinfo`; of cores that differ, what they have in common."""
    pairs = [
        (key.strip().lower(), value.strip())
        for key, _, value in (line.partition(":") for line in _lines(root / "proc/cpuinfo"))
    ]
    words = [set(value.split()) for key, value in pairs if key in ("flags", "features")]
    common = set.intersection(*words) if words else set()
    models = [value for key, value in pairs if key == "model name"] or [
        _ARM_PARTS.get(value, f"ARM part {value}") for key, value in pairs if key == "cpu part"
    ]
    return Processor(
        model=" + ".join(dict.fromkeys(models)),
        features=tuple(feature for feature in FEATURES if feature in common),
    )


def read_memory(root: Path = ROOT) -> Memory:
    """From `/proc/meminfo`, whose kB are 1024 bytes."""
    sizes = {}
    for line in _lines(root / "proc/meminfo"):
        key, _, value = line.partition(":")
        amount = value.split()[:1]
        if amount and amount[0].isdigit():
            sizes[key] = int(amount[0]) // 1024
    return Memory(sizes.get("MemTotal", 0), sizes.get("MemAvailable", 0))


def free_bytes(root: Path = ROOT) -> int:
    """Memory that this process may still take, as far as the system and its control group say."""
    free = [read_memory(root).available_mb << 20]
    own = next((line[3:] for line in _lines(root / "proc/self/cgroup") if line[:3] == "0::"), "/")
    for group, limit, used in (
        (root / "sys/fs/cgroup" / own.strip("/"), "memory.max", "memory.current"),
        (root / "sys/fs/cgroup/memory", "memory.limit_in_bytes", "memory.usage_in_bytes"),
    ):
        sizes = [line for name in (limit, used) for line in _lines(group / name)[:1]]
        if len(sizes) == 2 and all(size.isdigit() for size in sizes):
            stat = dict(line.split()[:2] for line in _lines(group / "memory.stat"))
            cache = int(stat.get("total_inactive_file", stat.get("inactive_file", 0)))
            free.append(max(1, int(sizes[0]) - int(sizes[1]) + cache))
    return min((size for size in free if size), default=UNKNOWN_FREE)


def read_board(root: Path = ROOT) -> str:
    """What the device tree calls this machine; empty where there is none."""
    return "".join(_lines(root / "proc/device-tree/model")).strip("\0 ")


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return []


def _system() -> str:
    try:
        name = platform.freedesktop_os_release()["PRETTY_NAME"]
    except (OSError, KeyError):
        return platform.platform()
    return f"{name} ({platform.system()} {platform.release()})"


def _onnxruntime() -> tuple[str, tuple[str, ...]]:
    try:
        import onnxruntime
    except ImportError:
        return "", ()
    return str(onnxruntime.__version__), tuple(onnxruntime.get_available_providers())


def _tensorrt() -> dict[str, str]:
    """Found without importing them, which would load the CUDA libraries."""
    return {module: _version(names) for module, names in _TENSORRT.items() if _is_there(module)}


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


def _nvidia_smi() -> tuple[str, ...]:
    """One line a GPU: name, memory, driver."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return ()
    query = [program, "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader"]
    try:
        answer = subprocess.run(query, capture_output=True, text=True, timeout=5, check=True)
    except (OSError, subprocess.SubprocessError):
        return ()
    return tuple(line.strip() for line in answer.stdout.splitlines() if line.strip())
