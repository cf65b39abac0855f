"""`edgespec bench arm --wheels`: the wheels that `pip install .` installs on a device."""

from __future__ import annotations

import sys
import tempfile
import zipfile
from pathlib import Path
from typing import NamedTuple

from rich.console import Console
from rich.table import Table

from bench.arm.emulator import run
from bench.arm.packages import own_wheel
from bench.lab.report import print_json
from bench.lab.tables import empty_table

PYTHONS = ("3.10", "3.11")
"""Python versions of JetPack 6 and Raspberry Pi OS 12."""
GLIBC_MINOR_VERSIONS = range(17, 36)
"""Versions 2.x of glibc whose wheels run on both systems; Ubuntu 22.04 has 2.35."""
_PIP = """
import sys
from pip._vendor.packaging import markers
there = markers.default_environment() | {"platform_machine": "aarch64"}
there |= {"python_version": sys.argv[1], "python_full_version": sys.argv[1] + ".0"}
markers.default_environment = lambda: there
from pip._internal.cli.main import main
sys.exit(main(sys.argv[2:]))
"""
"""Program that runs pip with the markers of the device. pip takes tags from `--platform`, but
evaluates conditions such as `python_version < "3.11"` for the Python that runs it."""


class Wheel(NamedTuple):
    name: str
    version: str
    download: int
    """Bytes of the wheel."""
    installed: int
    """Bytes of the unpacked files, without the `.pyc` files that Python adds."""


def count(*, as_json: bool) -> None:
    """Prints the wheels of each Python. Raises `EdgespecError` if no package index is reached."""
    found = {python: wheels(python) for python in PYTHONS}
    Console(highlight=False).print(_table(found))
    if as_json:
        print_json(found)


def wheels(python: str) -> list[Wheel]:
    """Wheels that an aarch64 device with that Python version installs, largest first."""
    tags = [f"manylinux_2_{minor}_aarch64" for minor in GLIBC_MINOR_VERSIONS] + [
        "manylinux2014_aarch64"
    ]
    platforms = [word for tag in tags for word in ("--platform", tag)]
    with own_wheel() as own, tempfile.TemporaryDirectory() as folder:
        command = [
            sys.executable, "-c", _PIP, python, "download", "-q", "-d", folder, "--only-binary",
            ":all:", "--implementation", "cp", "--python-version", python, *platforms, str(own),
        ]  # fmt: skip
        run(command, f"the wheels for Python {python} cannot be fetched")
        found = [measured(path) for path in Path(folder).glob("*.whl")]
    return sorted(found, key=lambda wheel: -wheel.installed)


def measured(path: Path) -> Wheel:
    """Name, version and sizes of a wheel file."""
    name, version, *_ = path.name.split("-")
    with zipfile.ZipFile(path) as archive:
        installed = sum(entry.file_size for entry in archive.infolist())
    return Wheel(name, version, path.stat().st_size, installed)


def _table(found: dict[str, list[Wheel]]) -> Table:
    """One row for each package, with version and sizes for each Python."""
    table = empty_table("wheels of a device")
    for header in ("Python", *(word for python in found for word in (python, "MB", "on disk"))):
        table.add_column(header)
    by_name = [{wheel.name: wheel for wheel in wheels} for wheels in found.values()]
    for name in dict.fromkeys(wheel.name for wheels in found.values() for wheel in wheels):
        table.add_row(name, *(cell for each in by_name for cell in _cells(each.get(name))))
    table.add_section()
    table.add_row("together", *(cell for wheels in found.values() for cell in _sums(wheels)))
    return table


def _cells(wheel: Wheel | None) -> tuple[str, str, str]:
    if wheel is None:
        return "", "", ""
    return wheel.version, _mb(wheel.download), _mb(wheel.installed)


def _sums(wheels: list[Wheel]) -> tuple[str, str, str]:
    download = sum(wheel.download for wheel in wheels)
    return str(len(wheels)), _mb(download), _mb(sum(wheel.installed for wheel in wheels))


def _mb(size: int) -> str:
    return f"{size / 1e6:.1f}"
