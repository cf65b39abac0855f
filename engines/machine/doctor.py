"""Report of `edgespec doctor`: this machine, and the profile to export a draft for.

A fact that the system does not report is shown as unknown.
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
"""Total memory below which an int8 draft would leave too little for other programs."""
DOT_PRODUCTS = frozenset({"avx512_vnni", "avx_vnni", "amx_int8", "asimddp", "i8mm"})
"""CPU features that multiply int8 values four at a time."""


@dataclass(frozen=True)
class Machine:
    """Facts about a machine, and its profile. Unknown facts are empty strings, zeros or tuples."""

    system: str = ""
    architecture: str = ""
    python: str = ""
    board: str = ""
    """Name in the device tree, such as that of a Raspberry Pi or a Jetson."""
    compatible: tuple[str, ...] = ()
    """Names of board and chip in the device tree."""
    release: str = ""
    """Release of Jetson Linux (L4T), such as 36.4.3."""
    jetpack: str = ""
    """Version of the package `nvidia-jetpack`."""
    cores: int = 0
    """Cores that this process may use."""
    processor: Processor = field(default_factory=Processor)
    memory: SystemMemory = field(default_factory=SystemMemory)
    onnxruntime: str = ""
    providers: tuple[str, ...] = ()
    tensorrt: Mapping[str, str] = field(default_factory=dict)
    """TensorRT's versions by module."""
    llamacpp: str = ""
    """Version of llama.cpp's bindings."""
    gpus: tuple[Gpu, ...] = ()
    energy: str = ""
    """Sensors that `--energy` would use, or the reason why there are none."""

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
        """Name of the profile of this hardware; empty if it is unknown or refused."""
        return self.recognition.profile

    @property
    def profile(self) -> tuple[str, str]:
        """Name of the profile to export a draft for, and the reason. Refused hardware has no name.

        It is the profile of the hardware, or the first of its `instead` profiles that the installed
        software runs, if it does not run the hardware's own.
        """
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
        """Name of the generic profile for this machine, and the reason."""
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
        """Profiles whose drafts the installed software runs too, if a bundle lacks `profile`; best
        first."""
        name = self.profile[0]
        others = self._others(self.hardware or name) if name else ()
        return tuple(other for other in others if other != name)

    @property
    def notes(self) -> tuple[str, ...]:
        """Obstacles to the hardware's profile, or to `profile` for unknown hardware; sentences."""
        name = self.hardware or self.profile[0]
        chosen = profiles.profile(name) if name else None
        return tuple(filter(None, (self._too_old(name, chosen), self._engines(chosen))))

    def _runs(self, chosen: Profile) -> bool:
        return runs_graphs(self.onnxruntime, chosen.opset) and chosen.providers[0] in (
            CPU,
            *self.providers,
        )

    def _others(self, name: str) -> tuple[str, ...]:
        """Returns the `instead` profiles of a profile that the installed software runs."""
        others = profiles.profile(name).instead
        return tuple(other for other in others if self._runs(profiles.profile(other)))

    def _lacks(self, name: str) -> str:
        """Returns the missing software that a profile needs, as a phrase; empty if none."""
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
        """Returns a sentence if ONNX Runtime is too old for the main graph; else empty."""
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
        """Returns a sentence if a profile's engines need another TensorRT; else empty."""
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
        """Returns everything for JSON. `hardware` is null if unknown; `hardware` and `profile` are
        null if the hardware is refused."""
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
    """Reads the facts about this machine. Raises nothing; may wait some seconds for a driver."""
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
        llamacpp=installed.llamacpp(),
        gpus=installed.gpus() or ((Gpu(board),) if jetson and board else ()),
        energy=find(root).describe(),
    )


def brief(root: Path = ROOT) -> str:
    """Returns this machine's board or CPU, and its cores. Reads only a few files."""
    name = read_board(root) or read_processor(root).model or platform.machine()
    cores = usable_cores()
    return f"{name}, {cores} core{'s' if cores != 1 else ''}"


def report(machine: Machine) -> str:
    """Returns the report as lines of text."""
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
        ("llama.cpp", f"bindings {machine.llamacpp}" if machine.llamacpp else "none"),
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
