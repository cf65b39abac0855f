"""Atomic writing of files and folders: under a hidden name in the same parent, then renamed.

A reader sees a complete folder or none. A killed writer leaves its hidden folder, which the next
writer of the same folder removes.
"""

from __future__ import annotations

import errno
import os
import shutil
import tempfile
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from edgespec.errors import EdgespecError


@contextmanager
def published(
    out: Path, check: Callable[[Path], None], failed: type[EdgespecError]
) -> Iterator[Path]:
    """Yields a folder to write into, renamed to `out` if the block succeeds and removed if not.

    `check` raises if `out` must not be replaced. It is called after the leftovers of killed writers
    are removed, which restores a folder caught between two renames, and again before `out` is
    replaced, since another process may have published it in the meantime. Raises `failed` for
    errors of the file system, and if `out` is a symbolic link.
    """
    with hidden(out, failed) as folder:
        _refuse_link(out, failed)
        check(out)
        yield folder
        old = folder.with_suffix(".old")
        while not _renamed(folder, out):
            _refuse_link(out, failed)
            check(out)
            with suppress(FileNotFoundError):  # another writer has just moved it
                out.rename(old)
        shutil.rmtree(old, ignore_errors=True)


def _refuse_link(out: Path, failed: type[EdgespecError]) -> None:
    if out.is_symlink():
        raise failed(f"{out} is a symbolic link; pass the folder that it stands for")


def _renamed(folder: Path, out: Path) -> bool:
    """Renames `folder` to `out`; returns False if there is a folder with files already."""
    try:
        folder.rename(out)
    except OSError as error:
        if error.errno in (errno.ENOTEMPTY, errno.EEXIST):
            return False
        raise
    return True


def replace_file(path: Path, content: bytes, mode: int = 0o600) -> None:
    """Writes a file, or replaces it, so that a power cut leaves the old or the new one.

    Raises `OSError`.
    """
    hidden_name = f".{path.name}-"
    with tempfile.NamedTemporaryFile(dir=path.parent, prefix=hidden_name, delete=False) as file:
        try:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
            os.chmod(file.name, mode)
            os.replace(file.name, path)
        except OSError:
            os.unlink(file.name)
            raise


@contextmanager
def hidden(out: Path, failed: type[EdgespecError]) -> Iterator[Path]:
    """Yields a hidden folder on the same disk as `out`, and removes it at the end.

    Raises `failed` for errors of the file system.
    """
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        _clear_up(out)
        folder = out.parent / f".{out.name}.{os.getpid()}.{uuid.uuid4().hex[:8]}.partial"
        folder.mkdir()
    except OSError as error:
        raise failed(f"cannot write to {out.parent}: {error.strerror}") from error
    try:
        yield folder
    except OSError as error:
        raise failed(f"writing {out} failed: {error.strerror or error}") from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _clear_up(out: Path) -> None:
    """Removes the leftovers of killed writers, and restores a folder caught between two renames."""
    for path in out.parent.iterdir():
        start, *rest = path.name.rsplit(".", 3)
        if start != f".{out.name}" or rest[-1] not in ("partial", "old"):
            continue
        if Path("/proc", rest[0]).exists():  # its process still writes
            continue
        if rest[-1] == "old" and not out.exists():
            with suppress(FileNotFoundError):  # another writer has restored it
                path.rename(out)
        else:
            shutil.rmtree(path, ignore_errors=True)
