"""Files of a folder: their size, their copy, and waiting until they are on the disk."""

from __future__ import annotations

import os
import shutil
import time
from pathlib import Path

from edgespec.errors import EdgespecError

_COPY_BLOCK_BYTES = 1 << 22
_FREE_SPACE_RATIO = 1.05
"""Free space that must exist, relative to the space that is needed."""


def check_free(folder: Path, needed_bytes: float) -> None:
    """Raises `EdgespecError` if the disk has less space than that."""
    free, needed = shutil.disk_usage(folder).free, needed_bytes * _FREE_SPACE_RATIO
    if free < needed:
        raise EdgespecError(
            f"this needs {needed / 1e9:.1f} GB in {folder.parent} and {free / 1e9:.1f} GB "
            "are free; point TMPDIR at a larger disk, or choose a smaller model"
        )


def files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def nbytes(folder: Path) -> int:
    """Bytes of all files in a folder."""
    return sum(path.stat().st_size for path in files(folder))


def flush(folder: Path, *, forget: bool = False) -> None:
    """Waits until a folder's files are on the disk; `forget` drops them from the page cache."""
    for path in files(folder):
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
            if forget:
                os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(handle)


def copy_seconds(source: Path, copy: Path) -> float:
    """Seconds to read and write all files of a folder. The copy is removed afterwards."""
    flush(source, forget=True)
    copy.mkdir()
    start = time.perf_counter()
    for path in files(source):
        with path.open("rb") as reader, (copy / path.name).open("wb") as writer:
            shutil.copyfileobj(reader, writer, _COPY_BLOCK_BYTES)
    flush(copy)
    seconds = time.perf_counter() - start
    shutil.rmtree(copy)
    return seconds
