"""Lean install of edgespec on the emulated device."""

from __future__ import annotations

import hashlib
import importlib.util
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from bench.arm.emulator import BOARDS, Emulator, run
from edgespec.config import cache_folder
from edgespec.errors import EdgespecError
from edgespec.publish import published

ONNX_RUNTIME = "onnxruntime==1.23.2"
"""Version for the emulated device: importing 1.31.1 under qemu 7.2 ends in a segmentation fault
with every `-cpu`."""
CHECKOUT = Path(__file__).parents[2]


def install(emulator: Emulator) -> Path:
    """Installs this checkout and its dependencies, as pip on the device selects them.

    Returns the folder of the packages. The cache keeps the dependencies as long as their list is
    the same. Raises `EdgespecError` if there is no checkout or no package index.
    """
    with own_wheel() as wheel:
        with zipfile.ZipFile(wheel) as archive:
            (metadata,) = (name for name in archive.namelist() if name.endswith("/METADATA"))
            lines = archive.read(metadata).decode().splitlines()
        needs = [
            line for line in lines if line.startswith("Requires-Dist") and "extra ==" not in line
        ]
        key = hashlib.sha256("\n".join([ONNX_RUNTIME, *needs]).encode()).hexdigest()[:8]
        folder = cache_folder() / "arm" / f"packages-{key}"
        if folder.exists():
            _pip(emulator, folder, "--no-deps", "--upgrade", str(wheel))
        else:
            with published(folder, lambda _: None, EdgespecError) as fresh:
                _pip(emulator, fresh, str(wheel), ONNX_RUNTIME)
    return folder


def _pip(emulator: Emulator, folder: Path, *arguments: str) -> None:
    """Runs this environment's pip with the emulated Python, which has no pip."""
    found = importlib.util.find_spec("pip")
    if found is None or found.origin is None:
        raise EdgespecError("pip is not installed here; make the environment with python -m venv")
    command = emulator.python(
        BOARDS["rpi5"], Path(found.origin).parent, "install", "-q", "--no-compile",
        "--only-binary", ":all:", "--target", folder, *arguments,
    )  # fmt: skip
    run(command, "pip on the emulated device failed", emulator.environment(folder))


@contextmanager
def own_wheel() -> Iterator[Path]:
    """Wheel of this checkout. It contains no machine code, so this machine can build it."""
    if not (CHECKOUT / "pyproject.toml").is_file():
        raise EdgespecError("the device's package is built from a checkout; run this in one")
    with tempfile.TemporaryDirectory() as folder:
        pip = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "-w", folder]
        run([*pip, str(CHECKOUT)], "edgespec's own wheel cannot be built")
        (wheel,) = Path(folder).glob("*.whl")
        yield wheel
