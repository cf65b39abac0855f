"""An aarch64 Python on an x86-64 Debian: Debian's own, under qemu's user-mode emulation.

Nothing is installed and no privilege is needed. apt resolves, downloads and verifies (by the signed
lists) with a state of its own, dpkg unpacks, and qemu translates one process and lets this kernel
serve its system calls. `-L` lays the unpacked tree over the file system: a path that is in it is
read there. So a Raspberry Pi's `/proc/cpuinfo` and device tree are two files in it; they decide
what `edgespec doctor` sees, and `-cpu` which instructions there are.

An emulated process can start x86-64 programs, but none of its own kind.
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
    """What qemu and two files have to say for a process to take itself to be on this board."""

    cpu: str
    """As qemu names it."""
    part: str
    """`CPU part` of `/proc/cpuinfo`."""
    features: str
    """Of `/proc/cpuinfo`, in Linux' words. Broadcom left the cryptography out of the Pi 4's."""
    model: str
    """Of the device tree."""


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
    """`root/` is Debian's arm64 tree, `qemu` the emulator."""

    folder: Path

    @property
    def root(self) -> Path:
        return self.folder / "root"

    def become(self, board: Board) -> None:
        """From now on processes find this board's four cores in `/proc`."""
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
        """The command of a Python process."""
        (python,) = self.root.glob("usr/bin/python3.[0-9]*")
        words = (self.folder / QEMU, "-cpu", board.cpu, "-L", self.root, python, *arguments)
        return [str(word) for word in words]

    @staticmethod
    def environment(packages: Path) -> dict[str, str]:
        """This process's, with these packages and no others: neither the user's nor, as `python -m`
        has it, those of the current folder."""
        there = {name: value for name, value in os.environ.items() if name[:6] != "PYTHON"}
        own = {"PYTHONPATH": str(packages), "PYTHONNOUSERSITE": "1", "PYTHONSAFEPATH": "1"}
        return there | own


def emulator() -> Emulator:
    """From the cache, or made. Raises `EdgespecError` where that cannot be done, and why."""
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
    """The `.deb` files that `PACKAGES` come to."""
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
    """Standard output. Raises `EdgespecError`: `failed`, and what apt, pip or Python says of it."""
    done = subprocess.run(command, capture_output=True, text=True, env=env)
    if done.returncode:
        lines = done.stderr.strip().splitlines()
        errors = [line for line in lines if line.startswith(("E:", "ERROR:"))] or lines[-1:]
        raise EdgespecError(f"{failed}: {errors[0] if errors else f'exit code {done.returncode}'}")
    return done.stdout
