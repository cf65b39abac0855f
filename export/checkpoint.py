"""What export reads: weights under Hugging Face names, one tensor at a time, from any source."""

from __future__ import annotations

import re
from collections.abc import Collection
from pathlib import Path
from typing import Any, Protocol

import numpy.typing as npt

from edgespec.architecture import Architecture
from edgespec.errors import CheckpointError, UsageError
from export.rope import Rope
from export.tokenizer import TokenizerSource

Weights = npt.NDArray[Any]
"""float32, float16 or ml_dtypes.bfloat16, in Hugging Face layout `[out, in]`."""

_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
_HUB_FILES = ["model*.safetensors", "*.json", "*.jinja"]


class Checkpoint(Protocol):
    """A readable, supported and complete model. Nothing is held but what is being read."""

    @property
    def name(self) -> str:
        """The folder's, hub's or file's name."""

    @property
    def revision(self) -> str:
        """The hub's commit; empty for local files."""

    @property
    def architecture(self) -> Architecture: ...

    @property
    def rope(self) -> Rope: ...

    @property
    def tokenizer(self) -> TokenizerSource: ...

    def names(self) -> Collection[str]:
        """Hugging Face names of all tensors that the architecture uses."""

    def shape(self, name: str) -> tuple[int, ...]: ...

    def nbytes(self, name: str) -> int:
        """Bytes on disk, for progress."""

    def tensor(self, name: str) -> Weights:
        """The whole tensor."""

    def rows(self, name: str, start: int, stop: int) -> Weights:
        """Rows `[start, stop)`; no other row is read, so an embedding is never held whole."""


def open_checkpoint(source: str, *, revision: str | None = None) -> Checkpoint:
    """Open a GGUF file, a Hugging Face folder, or a hub id such as `org/name`.

    Raises:
        CheckpointError: not there, not readable, or not complete.
        UnsupportedModel: readable, with a part that the graph has no nodes for.
    """
    from export.folder_source import FolderCheckpoint
    from export.gguf_source import GgufCheckpoint

    path = Path(source).expanduser()
    if path.exists() and revision is not None:
        raise UsageError(f"{source} is a local path; a revision goes with a hub id only")
    if path.is_dir():
        return FolderCheckpoint(path)
    if path.suffix.lower() == ".gguf" and path.is_file():
        return GgufCheckpoint(path)
    if path.exists():
        raise CheckpointError(
            f"{source} is neither a GGUF file nor a folder; "
            "give the folder that holds config.json and the safetensors files"
        )
    if not _HUB_ID.fullmatch(source) or path.suffix.lower() == ".gguf":
        raise CheckpointError(
            f"there is no {source}; give a GGUF file, a folder, or a hub id such as org/name"
        )
    folder = _download(source, revision)
    return FolderCheckpoint(folder, name=source, revision=folder.name)


def _download(hub_id: str, revision: str | None) -> Path:
    """The hub's snapshot folder, whose name is the commit."""
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
        wanted = hub_id if revision is None else f"{hub_id} at revision {revision}"
        raise CheckpointError(
            f"{wanted} is neither a local path nor to be had from the Hugging Face hub "
            f"({type(error).__name__}); check the name, the network and, where asked for, the login"
        ) from error
