"""What this machine can run: `edgespec doctor`.

Nothing is required: what a system does not tell is reported as unknown.
"""

from __future__ import annotations

import platform
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from edgespec.config import usable_cores
from edgespec.manifest import MAIN_OPSET
from engines.machine import installed, profiles
from engines.machine.energy.sensors import find
from engines.machine.installed import Gpu
from engines.machine.profiles import CPU, ONNX_RUNTIME, Profile, runs_graphs
from engines.machine.recognise import HardwareFacts, Recognition, numbers, recognise
from engines.machine.system_files import (
    ROOT,
    Processor,
    SystemMemory,
    read_board,
    read_compatible,
    read_memory,
    read_processor,
    read_release,
)

NEEDED = ".".join(map(str, ONNX_RUNTIME[MAIN_OPSET]))
"""The first ONNX Runtime that runs the main graph."""
SMALL_MEMORY_MB = 4096
"""Below this much memory a draft shares too little with everything else to be int8."""
DOT_PRODUCTS = frozenset({"avx512_vnni", "avx_vnni", "amx_int8", "asimddp", "i8mm"})
"""CPU features that multiply int8 values four at a time."""


@dataclass(frozen=True)
class Machine:
    """Empty strings, zeros and empty tuples stand for what could not be found out."""

    system: str = ""
    architecture: str = ""
    python: str = ""
    board: str = ""
    """As the device tree names it: Raspberry Pi, Jetson."""
    compatible: tuple[str, ...] = ()
    """The device tree's names for board and chip."""
    release: str = ""
    """Of Jetson Linux (L4T): 36.4.3."""
    jetpack: str = ""
    """The version of the package `nvidia-jetpack`."""
    cores: int = 0
    """Usable by this process."""
    processor: Processor = field(default_factory=Processor)
    memory: SystemMemory = field(default_factory=SystemMemory)
    onnxruntime: str = ""
    providers: tuple[str, ...] = ()
    tensorrt: Mapping[str, str] = field(default_factory=dict)
    """Versions by module."""
    gpus: tuple[Gpu, ...] = ()
    energy: str = ""
    """Its sensors, or why there are none, as `--energy` would use them."""

    @property
    def runs_opset_24(self) -> bool:
        return runs_graphs(self.onnxruntime)

    @property
    def recognition(self) -> Recognition:
        """The profile of this hardware."""
        boards = (self.board, *self.compatible) if self.board or self.compatible else ()
        cpu, features = self.processor.model, self.processor.features
        seen = HardwareFacts(boards, self.release, self.gpus, cpu, features, self.memory.total_mb)
        return recognise(seen)

    @property
    def hardware(self) -> str:
        """The name of the profile of this hardware; empty where it is unknown or refused."""
        return self.recognition.profile

    @property
    def profile(self) -> tuple[str, str]:
        """The profile to export a draft for, and why; no name where the hardware is refused.

        That of the hardware, unless what is installed cannot run it and runs one of `instead`."""
        found = self.recognition
        if found.profile:
            lacks, others = self._lacks(found.profile), self._others(found.profile)
            if not lacks or not others:
                return found.profile, found.reason
            return others[0], f"{found.reason}, but profile {found.profile} needs {lacks}"
        if found.refused:
            return "", found.reason
        name, reason = self._generic
        return name, f"{found.reason}; until then, {reason}" if found.reason else reason

    @property
    def _generic(self) -> tuple[str, str]:
        dots = sorted(DOT_PRODUCTS.intersection(self.processor.features))
        if self.onnxruntime and not self.runs_opset_24:
            return "cpu-compat", f"ONNX Runtime {self.onnxruntime} has no opset {MAIN_OPSET}"
        if 0 < self.memory.total_mb < SMALL_MEMORY_MB:
            return "cpu-int4", f"{self.memory.total_mb} MB of memory are little"
        if dots:
            return "cpu-int8", f"the CPU has int8 dot products ({', '.join(dots)})"
        if self.processor.features:
            return "cpu-fp32", "the CPU has no int8 dot products"
        return "cpu-fp32", "nothing is known of the CPU, and fp32 runs on any"

    @property
    def instead(self) -> tuple[str, ...]:
        """Profiles whose drafts do as well, with what is installed, where a bundle lacks `profile`.
        Best first."""
        name = self.profile[0]
        others = self._others(self.hardware or name) if name else ()
        return tuple(other for other in others if other != name)

    @property
    def notes(self) -> tuple[str, ...]:
        """What stands in the way of the hardware's profile, or else of `profile`, a sentence
        each."""
        name = self.hardware or self.profile[0]
        chosen = profiles.profile(name) if name else None
        return tuple(filter(None, (self._too_old(name, chosen), self._engines(chosen))))

    def _runs(self, chosen: Profile) -> bool:
        return runs_graphs(self.onnxruntime, chosen.opset) and chosen.providers[0] in (
            CPU,
            *self.providers,
        )

    def _others(self, name: str) -> tuple[str, ...]:
        """Of the profiles that do instead of one, those that what is installed runs."""
        others = profiles.profile(name).instead
        return tuple(other for other in others if self._runs(profiles.profile(other)))

    def _lacks(self, name: str) -> str:
        """What a profile needs and is not installed, as a phrase; empty if nothing."""
        chosen = profiles.profile(name)
        if chosen.backend != "tensorrt":
            lacks = not runs_graphs(self.onnxruntime, chosen.opset)
            what = f"opset {chosen.opset}, which ONNX Runtime {self.onnxruntime} does not have"
        else:
            lacks = bool(self._engines(chosen))
            there = self.tensorrt.get("tensorrt", "")
            have = f"the one here is {there}" if there else "Python finds none"
            what = f"TensorRT {chosen.tensorrt} or newer, and {have}"
        return what if lacks else ""

    def _too_old(self, name: str, chosen: Profile | None) -> str:
        if not self.onnxruntime or self.runs_opset_24:
            return ""
        runs = dict.fromkeys(
            ["cpu-compat", *([name] if chosen and chosen.opset < MAIN_OPSET else [])]
        )
        return (
            f"ONNX Runtime {self.onnxruntime} is older than {NEEDED} and runs the compat graph "
            f"alone ({' or '.join(runs)}); Python 3.11 or newer has a newer one."
        )

    def _engines(self, chosen: Profile | None) -> str:
        if chosen is None or chosen.backend != "tensorrt":
            return ""
        there = self.tensorrt.get("tensorrt", "")
        if not there and "tensorrt_rtx" in self.tensorrt and not chosen.signs.boards:
            return ""
        if numbers(there) >= numbers(chosen.tensorrt):
            return ""
        have = f"TensorRT {there} is too old" if there else "Python finds no TensorRT"
        hint = " (JetPack's is outside a virtual environment made without --system-site-packages)"
        return (
            f"{have} for engines, which need {chosen.tensorrt} or newer"
            f"{hint if chosen.signs.boards and not there else ''}."
        )

    def as_dict(self) -> dict[str, Any]:
        """Everything, ready for JSON. `hardware` is null where it is unknown, and both it and
        `profile` where it is refused."""
        profile, reason = self.profile
        return asdict(self) | {
            "runs_opset_24": self.runs_opset_24,
            "hardware": self.hardware or None,
            "profile": profile or None,
            "reason": reason,
            "instead": self.instead,
            "notes": self.notes,
        }


def describe(root: Path = ROOT) -> Machine:
    """Looks at this machine. Raises nothing; a driver is given a few seconds."""
    version, providers = installed.onnxruntime()
    board, compatible = read_board(root), read_compatible(root)
    jetson = any("nvidia" in name.lower() for name in (board, *compatible))
    release, jetpack = read_release(root) if jetson else ("", "")
    return Machine(
        system=installed.system(),
        architecture=platform.machine(),
        python=platform.python_version(),
        board=board,
        compatible=compatible,
        release=release,
        jetpack=jetpack,
        cores=usable_cores(),
        processor=read_processor(root),
        memory=read_memory(root),
        onnxruntime=version,
        providers=providers,
        tensorrt=installed.tensorrt(),
        gpus=installed.gpus() or ((Gpu(board),) if jetson and board else ()),
        energy=find(root).describe(),
    )


def brief(root: Path = ROOT) -> str:
    """This machine in a few words, read in no time: board or CPU, and cores."""
    name = read_board(root) or read_processor(root).model or platform.machine()
    cores = usable_cores()
    return f"{name}, {cores} core{'s' if cores != 1 else ''}"


def report(machine: Machine) -> str:
    """Lines for people."""
    profile, reason = machine.profile
    fits = "new enough" if machine.runs_opset_24 else f"too old: the main graph needs {NEEDED}"
    memory = f"{machine.memory.total_mb} MB, {machine.memory.available_mb} MB available"
    tensorrt = [f"{module} {version}" for module, version in machine.tensorrt.items()]
    facts = [
        ("system", f"{machine.system}, {machine.architecture}, Python {machine.python}"),
        ("board", machine.board or "none named"),
        ("Jetson Linux", _jetson_linux(machine)),
        ("CPU", machine.processor.model or "unknown"),
        ("cores", str(machine.cores or "unknown")),
        ("CPU features", ", ".join(machine.processor.features) or "unknown"),
        ("memory", memory if machine.memory.total_mb else "unknown"),
        ("ONNX Runtime", f"{machine.onnxruntime} ({fits})" if machine.onnxruntime else "none"),
        ("providers", ", ".join(machine.providers) or "none"),
        ("TensorRT", ", ".join(tensorrt) or "none"),
        ("GPU", "; ".join(map(str, machine.gpus)) or "none found"),
        ("energy", machine.energy),
        ("profile", f"{profile or 'none'}: {reason}"),
        ("", _settings(profiles.profile(profile)) if profile else ""),
        ("or instead", ", ".join(machine.instead)),
        *(("note", note) for note in machine.notes),
    ]
    return "\n".join(f"{name:14}{fact}" for name, fact in facts if fact)


def _settings(chosen: Profile) -> str:
    runs = f"{chosen.backend}, opset {chosen.opset}"
    return f"for {chosen.purpose}; {chosen.precisions}; {runs}"


def _jetson_linux(machine: Machine) -> str:
    if not machine.release:
        return ""
    return machine.release + (f", JetPack {machine.jetpack}" if machine.jetpack else "")
