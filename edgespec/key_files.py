"""Writing pairs of key files, for links and for signatures."""

from __future__ import annotations

import logging
import os
import re
import tempfile
from collections.abc import Callable
from pathlib import Path

from edgespec.errors import UsageError

log = logging.getLogger("edgespec")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


def publish_pair(
    folder: Path,
    name: str,
    suffixes: tuple[str, str],
    write: Callable[[Path], tuple[Path, Path]],
) -> tuple[Path, Path]:
    """Moves the public and the secret file that `write` makes in a folder to `folder`, or neither.

    `suffixes` come after `name` in the files' names. Raises `UsageError` as `make_keys` does.
    """
    if not _NAME.fullmatch(name):
        raise UsageError(
            f"{name!r} is no name for a key; use letters, digits, '.', '-' and '_', at most 64"
        )
    paths = folder / f"{name}{suffixes[0]}", folder / f"{name}{suffixes[1]}"
    for path in paths:
        if path.exists():
            raise UsageError(
                f"{folder} holds a key already for {name!r}; choose another folder or name"
            )
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder, prefix=".keygen-") as place:  # mode 0700
        made = write(Path(place))
        made[1].chmod(0o600)
        for file in made:
            with file.open("rb") as written:
                os.fsync(written.fileno())
        for file, path in zip(reversed(made), reversed(paths), strict=True):
            file.rename(path)
    return paths


def warn_if_readable(path: Path) -> None:
    """Warns if other users of the machine can read a secret key file."""
    if path.stat().st_mode & 0o077:
        log.warning("%s can be read by other users of this machine; run: chmod 600 %s", path, path)
