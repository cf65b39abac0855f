"""Entries under `edgespec` in config.json, for a draft that needs its target's weights.

    shares_embedding_of   fingerprint of the target's tokenizer; the draft uses the target's
                          embedding, output matrix and tokenizer, and its folder need not have them
    vocabulary            number of rows of the output matrix that the draft uses; the tensor
                          `edgespec.kept_ids` [vocabulary] lists them, ascending

Other keys are information for readers. transformers ignores all of them.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt
from tokenizers import Tokenizer

from edgespec.architecture import Architecture
from edgespec.checkpoint import Checkpoint
from edgespec.errors import CheckpointError, UsageError
from edgespec.tokenizer import fingerprint
from export.sources.safetensors_file import StoredTensor

KEPT_IDS = "edgespec.kept_ids"
SHARED_TENSORS = ("model.embed_tokens.weight", "lm_head.weight")
"""Tensors that a draft may take from its target."""


class DraftNotes(msgspec.Struct, frozen=True):
    """The entries; see the module."""

    shares_embedding_of: str = ""
    vocabulary: int = 0
    """0 for the full vocabulary."""


def draft_notes(config: Mapping[str, Any], folder: Path) -> DraftNotes:
    """Read the entries. Raises `CheckpointError` for malformed ones."""
    try:
        return msgspec.convert(config.get("edgespec") or {}, DraftNotes)
    except msgspec.ValidationError as error:
        raise CheckpointError(
            f"{folder / 'config.json'} has an entry 'edgespec' that cannot be read ({error}); "
            "distil the draft again"
        ) from error


def embedding_source(
    notes: DraftNotes, architecture: Architecture, base: Checkpoint | None, folder: Path
) -> Checkpoint | None:
    """Return the target whose tensors the draft shares; None for a complete folder.

    Raises `UsageError` if `base` is None, or is not the target that the draft was made for.
    """
    if not notes.shares_embedding_of:
        return None
    if base is None:
        raise UsageError(
            f"{folder} is a draft that shares its target's embedding; export it with its target: "
            f"edgespec export TARGET --draft {folder}"
        )
    target = base.architecture
    for what, of_draft, of_target in (
        ("hidden size", architecture.hidden, target.hidden),
        ("vocabulary", architecture.vocabulary, target.vocabulary),
        ("tie of embedding and output matrix", architecture.tied, target.tied),
    ):
        if of_draft != of_target:
            raise UsageError(
                f"{folder} shares the embedding of a target with another {what} ({of_draft}) than "
                f"{base.name} has ({of_target}); export it with the target that it was made for"
            )
    if fingerprint(Tokenizer.from_str(base.tokenizer.json)) != notes.shares_embedding_of:
        raise UsageError(
            f"{folder} shares the embedding of a target with another tokenizer than {base.name} "
            "has; export it with the target that it was made for"
        )
    return base


def kept_ids(
    notes: DraftNotes, stored: StoredTensor | None, architecture: Architecture, folder: Path
) -> npt.NDArray[np.int64] | None:
    """Return the ids of a trimmed draft, [vocabulary] ascending; None for a full vocabulary."""
    if not notes.vocabulary and stored is None:
        return None
    ids = np.empty(0, np.int64)
    if stored is not None and stored.dtype in ("I32", "I64") and len(stored.shape) == 1:
        ids = stored.read().astype(np.int64)
    rises = ids.size > 0 and bool((np.diff(ids) > 0).all())
    if (
        not rises
        or len(ids) != notes.vocabulary
        or ids[0] < 0
        or ids[-1] >= architecture.vocabulary
    ):
        raise CheckpointError(
            f"{folder}: config.json trims the vocabulary to {notes.vocabulary} of "
            f"{architecture.vocabulary} ids, but the tensor {KEPT_IDS} does not list that many of "
            "them in ascending order; distil the draft again"
        )
    return ids
