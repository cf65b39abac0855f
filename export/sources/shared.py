"""What config.json says under `edgespec`: a draft that is not whole without its target.

    shares_embedding_of   fingerprint of the tokenizer of the target whose embedding, output matrix
                          and tokenizer are the draft's too, so its folder need not repeat them
    vocabulary            rows of the output matrix that are used; the tensor `edgespec.kept_ids`
                          [vocabulary], ascending, says which

Other keys are for people, and transformers passes over all of them.
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
from export.sources.safetensors_file import Stored

KEPT_IDS = "edgespec.kept_ids"
LENT = ("model.embed_tokens.weight", "lm_head.weight")
"""Tensors that a target lends."""


class DraftNotes(msgspec.Struct, frozen=True):
    shares_embedding_of: str = ""
    vocabulary: int = 0
    """0: all of it."""


def draft_notes(config: Mapping[str, Any], folder: Path) -> DraftNotes:
    """Raises `CheckpointError` where they are malformed."""
    try:
        return msgspec.convert(config.get("edgespec") or {}, DraftNotes)
    except msgspec.ValidationError as error:
        raise CheckpointError(
            f"{folder / 'config.json'} has an entry 'edgespec' that cannot be read ({error}); "
            "distil the draft again"
        ) from error


def lender(
    notes: DraftNotes, architecture: Architecture, base: Checkpoint | None, folder: Path
) -> Checkpoint | None:
    """The target that lends its tensors; None where the folder is whole by itself.

    Raises `UsageError` where there is no target, or it is not the one that the draft was made for.
    """
    if not notes.shares_embedding_of:
        return None
    if base is None:
        raise UsageError(
            f"{folder} is a draft that shares its target's embedding; export it with its target: "
            f"edgespec export TARGET --draft {folder}"
        )
    theirs = base.architecture
    for what, mine, its in (
        ("hidden size", architecture.hidden, theirs.hidden),
        ("vocabulary", architecture.vocabulary, theirs.vocabulary),
        ("tie of embedding and output matrix", architecture.tied, theirs.tied),
    ):
        if mine != its:
            raise UsageError(
                f"{folder} shares the embedding of a target with another {what} ({mine}) than "
                f"{base.name} has ({its}); export it with the target that it was made for"
            )
    if fingerprint(Tokenizer.from_str(base.tokenizer.json)) != notes.shares_embedding_of:
        raise UsageError(
            f"{folder} shares the embedding of a target with another tokenizer than {base.name} "
            "has; export it with the target that it was made for"
        )
    return base


def kept_ids(
    notes: DraftNotes, stored: Stored | None, architecture: Architecture, folder: Path
) -> npt.NDArray[np.int64] | None:
    """The ids of a trimmed draft, [vocabulary] ascending; None for a draft that has them all."""
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
            "them, whole and ascending; distil the draft again"
        )
    return ids
