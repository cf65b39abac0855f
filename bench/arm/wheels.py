"""`edgespec bench arm --wheels`: what `pip install .` brings to a device, wheel by wheel."""

from __future__ import annotations

import json
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import NamedTuple

from rich import box
from rich.console import Console
from rich.table import Table

from bench.arm.emulator import run
from bench.arm.packages import own_wheel

PYTHONS = ("3.10", "3.11")
"""JetPack 6's and Raspberry Pi OS 12's."""
GLIBC = range(17, 36)
"""Minor versions whose wheels both of them run; Ubuntu 22.04 has 2.35."""
_PIP = """
import sys
from pip._vendor.packaging import markers
there = markers.default_environment() | {"platform_machine": "aarch64"}
there |= {"python_version": sys.argv[1], "python_full_version": sys.argv[1] + ".0"}
markers.default_environment = lambda: there
from pip._internal.cli.main import main
sys.exit(main(sys.argv[2:]))
"""
"""pip takes tags from --platform, but conditions like `python_version < "3.11"` from where it runs;
so it is told there."""


class Wheel(NamedTuple):
    name: str
    version: str
    download: int
    """Bytes."""
    installed: int
    """Bytes, without the `.pyc` files that Python adds."""


def count(*, as_json: bool) -> None:
    """Raises `EdgespecError` where the package index cannot be reached."""
    found = {python: wheels(python) for python in PYTHONS}
    Console(highlight=False).print(_table(found))
    if as_json:
        print(json.dumps({python: [w._asdict() for w in said] for python, said in found.items()}))


def wheels(python: str) -> list[Wheel]:
    """What an aarch64 device with that Python gets, largest first."""
    tags = [f"manylinux_2_{minor}_aarch64" for minor in GLIBC] + ["manylinux2014_aarch64"]
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
    """A wheel file."""
    name, version, *_ = path.name.split("-")
    with zipfile.ZipFile(path) as archive:
        installed = sum(entry.file_size for entry in archive.infolist())
    return Wheel(name, version, path.stat().st_size, installed)


def _table(found: dict[str, list[Wheel]]) -> Table:
    columns = [word for python in found for word in (python, "MB", "on disk")]
    table = Table("Python", *columns, box=box.SIMPLE)
    said = {python: {wheel.name: wheel for wheel in wheels} for python, wheels in found.items()}
    for name in dict.fromkeys(wheel.name for wheels in found.values() for wheel in wheels):
        table.add_row(name, *(word for by_name in said.values() for word in _cells(by_name, name)))
    table.add_section()
    sums = [
        (str(len(all_)), _mb(sum(w.download for w in all_)), _mb(sum(w.installed for w in all_)))
        for all_ in found.values()
    ]
    table.add_row("together", *(word for words in sums for word in words))
    return table


def _cells(wheels: dict[str, Wheel], name: str) -> tuple[str, str, str]:
    wheel = wheels.get(name)
    return (wheel.version, _mb(wheel.download), _mb(wheel.installed)) if wheel else ("", "", "")


def _mb(size: int) -> str:
    return f"{size / 1e6:.1f}"
