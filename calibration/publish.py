"""A checkpoint's folder appears whole or not at all: written beside its place, then renamed."""

from __future__ import annotations

import json
import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from edgespec.errors import CheckpointError, UsageError

FILES = (
    "config.json",
    "model.safetensors",
    "tokenizer.json",
    "tokenizer_config.json",
    "generation_config.json",
)
"""What a checkpoint of edgespec consists of; anything else in its folder is somebody else's."""


@contextmanager
def published(folder: Path) -> Iterator[Path]:
    """A folder to write into, renamed to `folder` if the block succeeds and removed if not.

    A checkpoint that edgespec wrote there before is replaced; files beside it move over.

    Raises:
        UsageError: `folder` is there and not edgespec's.
        CheckpointError: it cannot be written.
    """
    partial = folder.parent / f".{folder.name}.{os.getpid()}.{uuid.uuid4().hex[:8]}.partial"
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        _clear_up(folder)
        refuse_to_replace(folder)
        partial.mkdir()
        yield partial
        if folder.exists():
            _replace(folder, partial)
        else:
            partial.rename(folder)
    except OSError as error:
        raise CheckpointError(f"writing {folder} failed: {error.strerror or error}") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def refuse_to_replace(folder: Path) -> None:
    """Raises `UsageError` where `folder` holds something that edgespec did not write."""
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        ours = "made_by" in config["edgespec"]
    except (OSError, ValueError, KeyError, TypeError):
        ours = False
    if not ours:
        raise UsageError(
            f"{folder} exists already and is no checkpoint of edgespec; choose another place"
        )


def _replace(folder: Path, new: Path) -> None:
    for path in folder.iterdir():
        if path.name not in FILES and path.is_file():
            shutil.copy2(path, new / path.name)
        elif path.is_dir():
            shutil.copytree(path, new / path.name, symlinks=True)
    old = new.with_suffix(".old")
    folder.rename(old)
    new.rename(folder)
    shutil.rmtree(old, ignore_errors=True)


def _clear_up(folder: Path) -> None:
    """Removes what killed writers left, and puts back a checkpoint caught between renames."""
    for path in folder.parent.glob(f".{folder.name}.*.*.*"):
        start, process, _, kind = path.name.rsplit(".", 3)
        if start != f".{folder.name}" or kind not in ("partial", "old"):
            continue
        if process.isdigit() and int(process) != os.getpid() and Path("/proc", process).exists():
            continue
        if kind == "old" and not folder.exists():
            path.rename(folder)
        else:
            shutil.rmtree(path, ignore_errors=True)
