"""Debian's aarch64 Python on an x86-64 Debian, under qemu's user-mode emulation.

Nothing is installed and no privilege is needed. apt resolves, downloads and verifies packages (by
the signed lists) with a state folder of its own, and dpkg unpacks them. qemu translates one
process, whose system calls this machine's kernel serves. `-L` lays the unpacked tree over the file
system: a path that exists in the tree is read there. The tree holds the board's `/proc/cpuinfo` and
device tree, which `edgespec doctor` reads; `-cpu` selects the instructions.

An emulated process can start x86-64 programs, but no aarch64 programs.
"""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

from edgespec.config import cache_folder
from edgespec.errors import EdgespecError
from edgespec.publish import published

PACKAGES = ("python3-minimal", "libpython3-stdlib", "libstdc++6", "qemu-user-static:amd64")
QEMU = "usr/bin/qemu-aarch64-static"
_SOURCES = (Path("/etc/apt/sources.list.d/debian.sources"), Path("/etc/apt/sources.list"))
_OPTIONS = (
    "Dir::Etc::sourceparts=-",
    "APT::Architecture=arm64",
    "APT::Architectures::=arm64",
    "APT::Architectures::=amd64",
    "APT::Install-Recommends=false",
    "APT::Sandbox::User=",
    "APT::Update::Error-Mode=any",
    "Acquire::Languages=none",
    "Acquire::Retries=2",
    "Acquire::http::Timeout=60",
)


@dataclass(frozen=True)
class Board:
    """Settings of qemu and contents of two files that make a process recognise this board."""

    cpu: str
    """Name of the CPU in qemu."""
    part: str
    """Value of `CPU part` in `/proc/cpuinfo`."""
    features: str
    """Value of `Features` in `/proc/cpuinfo`. The Pi 4's CPU has no cryptographic instructions."""
    model: str
    """Model in the device tree."""


BOARDS: Mapping[str, Board] = MappingProxyType(
    {
        "rpi4": Board(
            "cortex-a72", "0xd08", "fp asimd evtstrm crc32 cpuid", "Raspberry Pi 4 Model B Rev 1.5"
        ),
        "rpi5": Board(
            "cortex-a76",
            "0xd0b",
            "fp asimd evtstrm aes pmull sha1 sha2 crc32 atomics fphp asimdhp cpuid asimdrdm lrcpc "
            "dcpop asimddp",
            "Raspberry Pi 5 Model B Rev 1.0",
        ),
    }
)


@dataclass(frozen=True)
class Emulator:
    """A folder with the emulator, and with Debian's arm64 tree in `root/`."""

    folder: Path

    @property
    def root(self) -> Path:
        return self.folder / "root"

    def become(self, board: Board) -> None:
        """Writes the board's files, so that later processes find its four cores in `/proc`."""
        cores = [
            f"processor\t: {core}\nFeatures\t: {board.features}\nCPU implementer\t: 0x41\n"
            f"CPU architecture: 8\nCPU part\t: {board.part}\n"
            for core in range(4)
        ]
        tree = self.root / "proc/device-tree"
        tree.mkdir(parents=True, exist_ok=True)
        (tree / "model").write_text(f"{board.model}\0")
        (self.root / "proc/cpuinfo").write_text("\n".join(cores))

    def python(self, board: Board, *arguments: str | Path) -> list[str]:
        """Command of an emulated Python process."""
        (python,) = self.root.glob("usr/bin/python3.[0-9]*")
        words = (self.folder / QEMU, "-cpu", board.cpu, "-L", self.root, python, *arguments)
        return [str(word) for word in words]

    @staticmethod
    def environment(packages: Path) -> dict[str, str]:
        """Environment of this process, in which Python imports from `packages`, and neither from
        the user's packages nor from the current folder."""
        there = {name: value for name, value in os.environ.items() if name[:6] != "PYTHON"}
        own = {"PYTHONPATH": str(packages), "PYTHONNOUSERSITE": "1", "PYTHONSAFEPATH": "1"}
        return there | own


def emulator() -> Emulator:
    """Emulator from the cache, created if it is missing. Raises `EdgespecError` if this machine is
    not an x86-64 Debian or the packages cannot be fetched."""
    machine = platform.machine()
    if machine != "x86_64":
        raise EdgespecError(f"an emulated arm64 needs an x86-64 machine, and this one is {machine}")
    folder = cache_folder() / "arm" / "debian"
    if not (folder / QEMU).is_file():
        with published(folder, lambda _: None, EdgespecError) as fresh:
            _unpack(_download(fresh / "apt"), fresh)
            shutil.rmtree(fresh / "apt")
    return Emulator(folder)


def _download(state: Path) -> list[Path]:
    """Downloads the `.deb` files of `PACKAGES` and their dependencies."""
    sources = next((path for path in _SOURCES if path.is_file()), None)
    if sources is None or shutil.which("apt-get") is None:
        raise EdgespecError("an emulated arm64 comes from Debian's packages; run this on Debian 12")
    for folder in ("lists/partial", "cache/archives/partial"):
        (state / folder).mkdir(parents=True)
    (state / "status").touch()
    own = {
        "Dir::Etc::sourcelist": sources,
        "Dir::State": state,
        "Dir::State::status": state / "status",
        "Dir::Cache": state / "cache",
    }
    options = [*(f"{name}={value}" for name, value in own.items()), *_OPTIONS]
    apt = ["apt-get", "-q", *(word for option in options for word in ("-o", option))]
    run([*apt, "update"], "Debian's package lists cannot be fetched")
    run([*apt, "install", "-y", "--download-only", *PACKAGES], "Debian's arm64 cannot be fetched")
    return sorted((state / "cache/archives").glob("*.deb"))


def _unpack(archives: Sequence[Path], folder: Path) -> None:
    (folder / "root").mkdir()
    for archive in archives:
        into = folder if archive.name.startswith("qemu-") else folder / "root"
        run(["dpkg-deb", "-x", str(archive), str(into)], f"{archive.name} cannot be unpacked")
    for program in (folder / QEMU).parent.iterdir():
        if program != folder / QEMU:  # the emulators of other architectures, 260 MB
            program.unlink()


def run(command: Sequence[str], failed: str, env: Mapping[str, str] | None = None) -> str:
    """Runs a command. Returns its standard output.

    Raises `EdgespecError` with `failed` and the error line of apt, pip or Python.
    """
    done = subprocess.run(command, capture_output=True, text=True, env=env)
    if done.returncode:
        lines = done.stderr.strip().splitlines()
        errors = [line for line in lines if line.startswith(("E:", "ERROR:"))] or lines[-1:]
        raise EdgespecError(f"{failed}: {errors[0] if errors else f'exit code {done.returncode}'}")
    return done.stdout
