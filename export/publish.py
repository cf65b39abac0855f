"""A bundle as a folder: published whole, the manifest last, a checksum for every file.

What changes a bundle that is there (`build`, `calibrate`) works for minutes beside it and then
calls `republish`, which reads the manifest anew: two of them at once keep each other's work.
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


def published_bundle(out: Path, force: bool) -> AbstractContextManager[Path]:
    """`edgespec.publish.published` for a bundle, which `force` replaces."""

    def check(out: Path) -> None:
        if not out.exists():
            return
        if not (out / MANIFEST).is_file():
            raise UsageError(f"{out} exists already and is no bundle; choose another place")
        if not force:
            raise UsageError(f"{out} exists already; pass --force to replace it")

    return published(out, check, BundleError)


def beside(bundle: Bundle) -> AbstractContextManager[Path]:
    """A hidden folder for the new files of a bundle, until `republish` takes them.

    Raises `BundleError` where the bundle cannot be replaced by a new folder, before any work.
    """
    place = bundle.folder.resolve()
    if place.is_mount():
        raise BundleError(
            f"{place} is a mount point, which no new folder can replace; mount the folder above it"
        )
    if Path.cwd().is_relative_to(place):
        raise BundleError(f"{place} will be replaced by a new folder, and you are in it; leave it")
    return hidden(place, BundleError)


def republish(bundle: Bundle, new: Path, change: Callable[[Manifest], Manifest]) -> Bundle:
    """Replaces the bundle as a whole by one with the files below `new` too, and opens it.

    `change` makes the new manifest of the one that is there now, which may be newer than
    `bundle.manifest`, or raises where both do not go together. What stays is linked, so neither
    time nor space is spent on weights, and who reads the old one goes on reading it; what users
    keep inside a bundle stays as well.

    Raises `BundleError` where the disk refuses, or what is there cannot be read.
    """
    place = bundle.folder.resolve()
    with _alone(place):
        before = Bundle.open(place).manifest
        after = change(before)
        gone = {MANIFEST} | (before.files.keys() - after.files.keys())
        with published_bundle(place, force=True) as folder:
            for source in (new, place):
                _link_all(source, folder, gone)
            write_manifest(folder, after)
    return Bundle.open(bundle.folder)


@contextmanager
def _alone(place: Path) -> Iterator[None]:
    """One at a time, of all processes that republish this bundle.

    The lock is a file beside the bundle. Who holds it removes it, so who waited may have locked a
    file that is no longer there, and asks again.
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
    """Every file below `source` that is not `gone`, unless `folder` has one of its name."""
    for path in sorted(source.rglob("*")):
        name = path.relative_to(source)
        if path.is_file() and name.as_posix() not in gone and not (folder / name).exists():
            link(path, folder / name)


def link(source: Path, place: Path) -> None:
    """A second name for the file where the disk has such, a copy elsewhere."""
    if not source.is_file():
        raise BundleError(f"{source} is missing; export the bundle again")
    place.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(source, place)
    except OSError:
        shutil.copy2(source, place)


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Seals the manifest."""
    document = msgspec.json.format(msgspec.json.encode(manifest.sealed()), indent=1)
    (folder / MANIFEST).write_bytes(document + b"\n")


def described(path: Path) -> File:
    """Reads the whole file."""
    return File(sha256=hash_file(path), size=path.stat().st_size)


def describe_all(folder: Path, known: Mapping[Path, File]) -> dict[str, File]:
    """Every file below `folder`, by its path there; those that are not `known` are read."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    unknown = sum(path.stat().st_size for path in paths if path not in known)
    files = {}
    with progress("checksums", unknown) as advance:
        for path in paths:
            file = known.get(path) or described(path)
            files[path.relative_to(folder).as_posix()] = file
            advance(0 if path in known else file.size)
    return files
