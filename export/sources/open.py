"""Opening a checkpoint: a Hugging Face folder, a hub id, or a GGUF file."""

from __future__ import annotations

import re
from pathlib import Path

from edgespec.checkpoint import Checkpoint
from edgespec.errors import CheckpointError, UsageError

_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
_HUB_FILES = ["model*.safetensors", "*.json", "*.jinja"]


def open_checkpoint(
    source: str, *, revision: str | None = None, base: Checkpoint | None = None
) -> Checkpoint:
    """Open a GGUF file, a Hugging Face folder, or a hub repository such as `org/name`.

    `base` is the target of a draft that may share its embedding and its tokenizer.

    Raises:
        UsageError: a path that does not exist, a revision of a local path, or a draft without its
            own target.
        CheckpointError: an unreadable, damaged or incomplete model, or none of that name on the
            hub.
        UnsupportedModel: a readable model with a part that the graph has no nodes for.
    """
    from export.sources.folder import FolderCheckpoint
    from export.sources.gguf import GgufCheckpoint

    path = Path(source).expanduser()
    if path.exists() and revision is not None:
        raise UsageError(f"{source} is a local path; a revision goes with a hub id only")
    if path.is_dir():
        return FolderCheckpoint(path, base=base)
    if path.suffix.lower() == ".gguf" and path.is_file():
        return GgufCheckpoint(path)
    if path.exists():
        raise CheckpointError(
            f"{source} is neither a GGUF file nor a folder; "
            "give the folder that holds config.json and the safetensors files"
        )
    if not _HUB_ID.fullmatch(source) or path.suffix.lower() == ".gguf":
        raise UsageError(
            f"there is no {source}; give a GGUF file, a folder, or a hub id such as org/name"
        )
    folder = _download(source, revision)
    return FolderCheckpoint(folder, name=source, revision=folder.name, base=base)


def _download(hub_id: str, revision: str | None) -> Path:
    """Download a snapshot. Return its folder, whose name is the commit."""
    try:
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import HFValidationError
    except ImportError as error:
        raise CheckpointError(
            f"{hub_id} is not a local path, and reading the hub needs edgespec[export]"
        ) from error
    try:
        return Path(snapshot_download(hub_id, revision=revision, allow_patterns=_HUB_FILES))
    except (OSError, HFValidationError) as error:
        place = hub_id if revision is None else f"{hub_id} at revision {revision}"
        raise CheckpointError(
            f"{place} is neither a local path nor available on the Hugging Face hub "
            f"({type(error).__name__}); check the name, the network and, where asked for, the login"
        ) from error
