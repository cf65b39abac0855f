"""How a bundle comes to its place: written into a hidden folder beside it, and renamed.

The manifest is written last, so a reader sees a whole bundle or none. What is killed leaves only
the hidden folder, which the next to write there clears away.
"""

from __future__ import annotations

import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec

from edgespec.errors import BundleError, UsageError
from edgespec.manifest import MANIFEST, File, Manifest, hash_file
from edgespec.progress import progress


@contextmanager
def published(out: Path, force: bool) -> Iterator[Path]:
    """A folder to write into, renamed to `out` if the block succeeds and removed if not."""
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        _clear_up(out)
        _refuse_to_replace(out, force)
        folder = out.parent / f".{out.name}.{os.getpid()}.{uuid.uuid4().hex[:8]}.partial"
        folder.mkdir()
    except OSError as error:
        raise BundleError(f"cannot write to {out.parent}: {error.strerror}") from error
    try:
        yield folder
        if out.exists():
            old = folder.with_suffix(".old")
            out.rename(old)
            folder.rename(out)
            shutil.rmtree(old)
        else:
            folder.rename(out)
    except OSError as error:
        raise BundleError(f"writing {out} failed: {error.strerror or error}") from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _refuse_to_replace(out: Path, force: bool) -> None:
    if not out.exists():
        return
    if not (out / MANIFEST).is_file():
        raise UsageError(f"{out} exists already and is no bundle; choose another place")
    if not force:
        raise UsageError(f"{out} exists already; pass --force to replace it")


def _clear_up(out: Path) -> None:
    """Removes what killed exports to `out` left, and puts back a bundle caught between renames."""
    for path in out.parent.iterdir():
        start, *rest = path.name.rsplit(".", 3)
        if start != f".{out.name}" or rest[-1] not in ("partial", "old"):
            continue
        if Path("/proc", rest[0]).exists():  # its process still writes
            continue
        if rest[-1] == "old" and not out.exists():
            path.rename(out)
        else:
            shutil.rmtree(path, ignore_errors=True)


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Seals the manifest."""
    document = msgspec.json.format(msgspec.json.encode(manifest.sealed()), indent=1)
    (folder / MANIFEST).write_bytes(document + b"\n")


def described(path: Path) -> File:
    """Reads the whole file."""
    return File(sha256=hash_file(path), size=path.stat().st_size)


def describe_all(folder: Path) -> dict[str, File]:
    """Every file below `folder`, by its path there."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    files = {}
    with progress("checksums", sum(path.stat().st_size for path in paths)) as advance:
        for path in paths:
            file = files[path.relative_to(folder).as_posix()] = described(path)
            advance(file.size)
    return files
