"""The device's lean install, in the emulated machine."""

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
"""1.31.1 ends in a segmentation fault when it is imported under qemu 7.2, with every `-cpu`."""
CHECKOUT = Path(__file__).parents[2]


def install(emulator: Emulator) -> Path:
    """A folder with edgespec as it stands here and what it needs, as pip on the device picks it.

    What it needs is kept in the cache for as long as its list stays the same. Raises
    `EdgespecError` where there is no checkout or no package index.
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
    """This environment's pip, run by the emulated Python, which has none of its own."""
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
    """What `pip install .` builds. It holds no machine code, so it may be built here."""
    if not (CHECKOUT / "pyproject.toml").is_file():
        raise EdgespecError("the device's package is built from a checkout; run this in one")
    with tempfile.TemporaryDirectory() as folder:
        pip = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "-w", folder]
        run([*pip, str(CHECKOUT)], "edgespec's own wheel cannot be built")
        (wheel,) = Path(folder).glob("*.whl")
        yield wheel
