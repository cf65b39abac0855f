"""Paths that a manifest names: inside the bundle, and each with a checksum."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from edgespec.errors import BundleError
from edgespec.plain_text import PLAIN

if TYPE_CHECKING:
    from edgespec.manifest import Manifest

_plain = re.compile(PLAIN)


def check_paths(folder: Path, manifest: Manifest) -> None:
    """Raises `BundleError` for a path that a bundle must not name.

    A path is relative and in canonical form, and no symbolic link leads out of the bundle. Every
    graph and engine that is loaded has a checksum in `files`, in the folder that is verified before
    it is loaded.
    """
    root = folder.resolve()
    for name in manifest.files:
        if not _is_canonical(name):
            raise BundleError(
                f"the manifest of {folder} names {name!r}, which is no path inside a bundle; "
                "do not use this bundle"
            )
        if not _inside(folder / name, root):
            raise BundleError(
                f"{folder / name} leads out of the bundle by a symbolic link; copy the file itself"
            )
    for place, name in _loaded(manifest):
        if name not in manifest.files or not name.startswith(place):
            raise BundleError(
                f"the manifest of {folder} names {name!r}, which has no checksum in {place}; "
                "do not use this bundle"
            )


def _is_canonical(name: str) -> bool:
    path = PurePosixPath(name)
    return (
        str(path) == name
        and not path.is_absolute()
        and name != "."
        and ".." not in path.parts
        and "\\" not in name
        and bool(_plain.match(name))
    )


def _inside(path: Path, root: Path) -> bool:
    try:
        return path.resolve().is_relative_to(root)
    except (OSError, RuntimeError):  # symbolic links in a circle
        return False


def _loaded(manifest: Manifest) -> Iterator[tuple[str, str]]:
    """Graphs and engines by the folder that is verified before they are loaded."""
    for segment in manifest.target.segments:
        yield "target/", segment.graph
        if segment.exit:
            yield "target/", segment.exit
    yield "target/", manifest.target.head
    for profile, draft in manifest.drafts.items():
        yield f"draft/{profile}/", draft.graph
    for engine in manifest.engines:
        yield f"{PurePosixPath(engine.graph).parent}/", engine.file
