"""Text and JSON files of a checkpoint; whatever is wrong with them becomes one sentence."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from edgespec.errors import CheckpointError


def read_text(path: Path) -> str:
    """The file's text, which must be UTF-8."""
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise CheckpointError(f"{path} cannot be read as text ({error})") from error


def read_json(path: Path, *, optional: bool = False) -> dict[str, Any]:
    """The object in the file; empty if the file is optional and not there."""
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
