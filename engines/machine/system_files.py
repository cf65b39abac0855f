"""Facts about the machine from the files of a Linux system: `/proc`, `/sys`, `/etc` and packages.

No file is required; a fact that is missing is left empty. The readers take the root of the file
tree, so that they also run on recorded trees.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

ROOT = Path("/")
UNKNOWN_FREE_BYTES = 1 << 30
"""Memory that is assumed to be free if the system does not report it."""
FEATURES = (
    "avx2", "avx512f", "avx512_vnni", "avx_vnni", "avx512_bf16", "amx_int8",
    "asimd", "asimddp", "asimdhp", "i8mm", "bf16", "sve",
)  # fmt: skip
_ARM_PARTS: Mapping[str, str] = MappingProxyType(
    {
        "0xd03": "Cortex-A53",
        "0xd04": "Cortex-A35",
        "0xd05": "Cortex-A55",
        "0xd07": "Cortex-A57",
        "0xd08": "Cortex-A72",
        "0xd09": "Cortex-A73",
        "0xd0a": "Cortex-A75",
        "0xd0b": "Cortex-A76",
        "0xd0c": "Neoverse N1",
        "0xd40": "Neoverse V1",
        "0xd41": "Cortex-A78",
        "0xd42": "Cortex-A78AE",
        "0xd44": "Cortex-X1",
        "0xd49": "Neoverse N2",
        "0xd4f": "Neoverse V2",
        "0xd83": "Neoverse V3AE",
        "0x004": "NVIDIA Carmel",
    }
)


@dataclass(frozen=True)
class Processor:
    """The CPU's name and instruction sets."""

    model: str = ""
    features: tuple[str, ...] = ()
    """Entries of `FEATURES` that every core has."""


@dataclass(frozen=True)
class SystemMemory:
    """Host memory in MB of 2**20 bytes; 0 if unknown."""

    total_mb: int = 0
    available_mb: int = 0


def read_processor(root: Path = ROOT) -> Processor:
    """Reads `/proc/cpuinfo`. If cores differ, returns all models and the common features."""
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


def read_memory(root: Path = ROOT) -> SystemMemory:
    """Reads `/proc/meminfo`, whose kB are 1024 bytes."""
    sizes = {}
    for line in _lines(root / "proc/meminfo"):
        key, _, value = line.partition(":")
        amount = value.split()[:1]
        if amount and amount[0].isdigit():
            sizes[key] = int(amount[0]) // 1024
    return SystemMemory(sizes.get("MemTotal", 0), sizes.get("MemAvailable", 0))


def free_bytes(root: Path = ROOT) -> int:
    """Returns the memory that this process may still take, by the system and its control group."""
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
    return min((size for size in free if size), default=UNKNOWN_FREE_BYTES)


def read_board(root: Path = ROOT) -> str:
    """Returns the machine's name in the device tree; empty without a device tree.

    Containers hide the device tree. A Raspberry Pi has its name in `/proc/cpuinfo` too.
    """
    model = "".join(_lines(root / "proc/device-tree/model")).strip("\0 ")
    names = [line.partition(":")[2].strip() for line in _lines(root / "proc/cpuinfo")
            if re.match(r"Model\s*:", line)]  # fmt: skip
    return model or "".join(names[:1])


def read_compatible(root: Path = ROOT) -> tuple[str, ...]:
    """Returns the device tree's names of board and chip, such as `nvidia,tegra234`."""
    names = "".join(_lines(root / "proc/device-tree/compatible")).split("\0")
    return tuple(filter(None, names))


def read_release(root: Path = ROOT) -> tuple[str, str]:
    """Returns the releases of Jetson Linux (36.4.3) and JetPack (6.2); empty if unknown.

    Reads the installed packages and `/etc/nv_tegra_release`, whose first line is
    `# R36 (release), REVISION: 4.3, ...`.
    """
    packages = _packages(root, ("nvidia-l4t-core", "nvidia-jetpack"))
    line = "".join(_lines(root / "etc/nv_tegra_release")[:1])
    found = re.match(r"# R(\d+) \(release\), REVISION: ([\d.]+)", line)
    core = packages.get("nvidia-l4t-core", "").partition("-")[0]
    jetpack = re.split(r"[+-]", packages.get("nvidia-jetpack", ""))[0]
    return f"{found[1]}.{found[2]}" if found else core, jetpack


def _packages(root: Path, names: tuple[str, ...]) -> dict[str, str]:
    """Returns the versions of installed Debian packages by name."""
    package, there, versions = "", False, {}
    for line in _lines(root / "var/lib/dpkg/status"):
        key, _, value = line.partition(": ")
        if key == "Package":
            package, there = value, False
        elif key == "Status":
            there = value.endswith(" installed")
        elif key == "Version" and there and package in names:
            versions[package] = value
    return versions


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return []
