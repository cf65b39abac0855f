"""Publishing a bundle: the complete folder at once, with a checksum for every file.

Commands that change an existing bundle (`build`, `calibrate`) work for minutes in another folder
and then call `republish`, which reads the manifest again. Two such commands at the same time keep
each other's work.
"""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path
from typing import IO

import msgspec

from edgespec.errors import BundleError, UsageError
from edgespec.manifest import MANIFEST, Bundle, File, Manifest, hash_file
from edgespec.progress import progress
from edgespec.publish import hidden, published
from edgespec.signing import SIGNATURE


def published_bundle(out: Path, force: bool) -> AbstractContextManager[Path]:
    """Publish a bundle with `edgespec.publish.published`; `force` replaces an existing one."""

    def check(out: Path) -> None:
        if not out.exists():
            return
        if not (out / MANIFEST).is_file():
            raise UsageError(f"{out} exists already and is no bundle; choose another place")
        if not force:
            raise UsageError(f"{out} exists already; pass --force to replace it")

    return published(out, check, BundleError)


def staging_folder(bundle: Bundle) -> AbstractContextManager[Path]:
    """Create a hidden folder for the new files of a bundle, until `republish` takes them.

    Raises `BundleError` before any work if the bundle cannot be replaced by a new folder.
    """
    place = bundle.folder.resolve()
    if place.is_mount():
        raise BundleError(
            f"{place} is a mount point, so it cannot be replaced by a new folder; "
            "mount its parent folder instead"
        )
    if Path.cwd().is_relative_to(place):
        raise BundleError(
            f"{place} will be replaced by a new folder, and it is the current folder; "
            "change to another folder"
        )
    return hidden(place, BundleError)


def republish(bundle: Bundle, new: Path, change: Callable[[Manifest], Manifest]) -> Bundle:
    """Replace the bundle by one that also has the files below `new`, and open it.

    `change` makes the new manifest from the present one, which may be newer than `bundle.manifest`,
    and raises if the new files do not fit it. Unchanged files are linked, so weights cost neither
    time nor space, and processes that read the old bundle continue. A user's own files in the
    bundle are kept. A signature is not, since it is of the present manifest.

    Raises `BundleError` if the present bundle cannot be read or the new one not be written.
    """
    place = bundle.folder.resolve()
    with _exclusive(place):
        before = Bundle.open(place).manifest
        after = change(before)
        gone = {MANIFEST, SIGNATURE} | (before.files.keys() - after.files.keys())
        with published_bundle(place, force=True) as folder:
            for source in (new, place):
                _link_all(source, folder, gone)
            write_manifest(folder, after)
    return Bundle.open(bundle.folder)


@contextmanager
def _exclusive(place: Path) -> Iterator[None]:
    """Exclude other processes that republish this bundle.

    The lock is a file in the parent folder. Its holder removes it. A waiting process may therefore
    have locked a removed file, and tries again.
    """
    path = place.parent / f".{place.name}.lock"
    try:
        file = _locked(path)
    except OSError as error:
        raise BundleError(f"cannot write to {place.parent}: {error.strerror}") from error
    with file:
        try:
            yield
        finally:
            path.unlink(missing_ok=True)


def _locked(path: Path) -> IO[str]:
    while True:
        file = path.open("w")
        fcntl.flock(file, fcntl.LOCK_EX)
        with suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(file.fileno()), path.stat()):
                return file
        file.close()


def _link_all(source: Path, folder: Path, gone: set[str]) -> None:
    """Link every file below `source` that is not in `gone` and not yet in `folder`."""
    for path in sorted(source.rglob("*")):
        name = path.relative_to(source)
        if path.is_file() and name.as_posix() not in gone and not (folder / name).exists():
            link(path, folder / name)


def link(source: Path, place: Path) -> None:
    """Make a hard link, or a copy on a file system without links.

    Raises `BundleError` for a missing `source`.
    """
    if not source.is_file():
        raise BundleError(f"{source} is missing; export the bundle again")
    place.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(source, place)
    except OSError:
        shutil.copy2(source, place)


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Seal the manifest and write it to `folder`."""
    document = msgspec.json.format(msgspec.json.encode(manifest.sealed()), indent=1)
    (folder / MANIFEST).write_bytes(document + b"\n")


def described(path: Path) -> File:
    """Return size and checksum of a file; reads all of it."""
    return File(sha256=hash_file(path), size=path.stat().st_size)


def describe_all(folder: Path, known: Mapping[Path, File]) -> dict[str, File]:
    """Return every file below `folder` by relative path. Files that are not `known` are read."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    unknown = sum(path.stat().st_size for path in paths if path not in known)
    files = {}
    with progress("checksums", unknown) as advance:
        for path in paths:
            file = known.get(path) or described(path)
            files[path.relative_to(folder).as_posix()] = file
            advance(0 if path in known else file.size)
    return files
