"""Text and JSON files of a checkpoint, with errors as one sentence."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from edgespec.errors import CheckpointError


@contextmanager
def located(path: Path) -> Iterator[None]:
    """Put `path` in front of the message of a `CheckpointError` that the block raises."""
    try:
        yield
    except CheckpointError as error:
        raise type(error)(f"{path}: {error}") from error


def read_text(path: Path) -> str:
    """Read a UTF-8 file. Raises `CheckpointError`."""
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise CheckpointError(f"{path} cannot be read as text ({error})") from error


def read_json(path: Path, *, optional: bool = False) -> dict[str, Any]:
    """Read the object in the file; empty if the file is optional and missing."""
    if optional and not path.exists():
        return {}
    try:
        content = json.loads(read_text(path))
    except json.JSONDecodeError as error:
        raise CheckpointError(
            f"{path} is not JSON (line {error.lineno}: {error.msg}); download it again"
        ) from error
    except RecursionError as error:
        raise CheckpointError(f"{path} is nested too deeply; download it again") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} holds no JSON object; download it again")
    return content
