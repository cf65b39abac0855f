"""A bundle as a folder: published whole, the manifest last, a checksum for every file."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager
from pathlib import Path

import msgspec

from edgespec.errors import BundleError, UsageError
from edgespec.manifest import MANIFEST, File, Manifest, hash_file
from edgespec.progress import progress
from edgespec.publish import published


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
