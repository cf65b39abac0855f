"""A Hugging Face folder: `config.json`, safetensors in one file or several, `tokenizer.json`."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from edgespec.checkpoint import Blocks, Checkpoint
from edgespec.errors import CheckpointError, UnsupportedModel
from export.sources.families import architecture_from_config, check_tensors
from export.sources.json_file import located, read_json
from export.sources.packed import Packed, packed_bits, with_packed
from export.sources.rope import rope_from_config
from export.sources.safetensors_file import FLOATS, StoredTensor, stored_tensors
from export.sources.shared import (
    KEPT_IDS,
    SHARED_TENSORS,
    draft_notes,
    embedding_source,
    kept_ids,
)
from export.sources.tokenizer import check_embedding, check_end_ids, tokenizer_from_folder

_CHUNK_ROWS = 1024


class FolderCheckpoint:
    """A folder as transformers writes it, checked to be supported and complete.

    Weights may be packed (`export.sources.packed`). A draft may share weights with its target,
    `base` (`export.sources.shared`).
    """

    def __init__(
        self,
        folder: Path,
        *,
        name: str | None = None,
        revision: str = "",
        base: Checkpoint | None = None,
    ) -> None:
        path = folder / "config.json"
        if not path.is_file():
            raise CheckpointError(
                f"{folder} has no config.json; give a folder as transformers saves it, "
                "or the GGUF file itself"
            )
        config = read_json(path)
        self.name = name or folder.resolve().name
        self.revision = revision
        with located(path):
            self.architecture = architecture_from_config(config)
            self.rope = rope_from_config(config, self.architecture.head_dim)
            bits = packed_bits(config)
        notes = draft_notes(config, folder)
        target = embedding_source(notes, self.architecture, base, folder)
        stored = stored_tensors(folder)
        self.kept_ids: npt.NDArray[np.int64] | None = kept_ids(
            notes, stored.pop(KEPT_IDS, None), self.architecture, folder
        )
        self._stored = with_packed(stored, bits)
        shapes = {name: one.shape for name, one in self._stored.items()}
        self._shared: dict[str, Checkpoint] = {}
        if target is not None:
            missing = [n for n in SHARED_TENSORS if n not in shapes and n in target.names()]
            self._shared = dict.fromkeys(missing, target)
            shapes |= {name: target.shape(name) for name in missing}
        self._names = check_tensors(self.architecture, shapes, str(folder))
        self._check_dtypes()
        self._check_tie(folder)
        if target is not None and not (folder / "tokenizer.json").exists():
            self.tokenizer = target.tokenizer
        else:
            self.tokenizer = tokenizer_from_folder(folder, config)
        with located(path):
            check_embedding(self.tokenizer, self.architecture.vocabulary, "vocab_size")
        check_end_ids(folder, self.architecture.vocabulary)

    def names(self) -> Collection[str]:
        return self._names

    def shape(self, name: str) -> tuple[int, ...]:
        return self._shared[name].shape(name) if name in self._shared else self._stored[name].shape

    def nbytes(self, name: str) -> int:
        if name in self._shared:
            return self._shared[name].nbytes(name)
        return self._stored[name].nbytes

    def tensor(self, name: str) -> npt.NDArray[Any]:
        if name in self._shared:
            return self._shared[name].tensor(name)
        return self._stored[name].read()

    def bits(self, name: str) -> int | None:
        if name in self._shared:
            return self._shared[name].bits(name)
        stored = self._stored[name]
        return stored.bits if isinstance(stored, Packed) else None

    def blocks(self, name: str) -> Blocks | None:
        if name in self._shared:
            return self._shared[name].blocks(name)
        stored = self._stored[name]
        return stored.blocks() if isinstance(stored, Packed) else None

    def rows(self, name: str, start: int, stop: int) -> npt.NDArray[Any]:
        if name in self._shared:
            return self._shared[name].rows(name, start, stop)
        return self._stored[name].rows(start, stop)

    def _check_dtypes(self) -> None:
        for name in self._names:
            stored = self._stored.get(name)
            if isinstance(stored, StoredTensor) and stored.dtype not in FLOATS:
                raise UnsupportedModel(
                    f"{stored.path}: tensor {name} has the dtype {stored.dtype}; "
                    f"{', '.join(FLOATS)} are supported"
                )

    def _check_tie(self, folder: Path) -> None:
        """Drop the output matrix of a tied checkpoint, which must equal the embedding."""
        if not self.architecture.tied or "lm_head.weight" not in self._names:
            return
        for start in range(0, self.architecture.vocabulary, _CHUNK_ROWS):
            embedding, output = (
                self.rows(name, start, start + _CHUNK_ROWS)
                for name in ("model.embed_tokens.weight", "lm_head.weight")
            )
            if not np.array_equal(embedding, output):
                raise CheckpointError(
                    f"{folder}: config.json ties the output matrix to the embedding, but "
                    "lm_head.weight differs from it; set tie_word_embeddings to false if the "
                    "model uses lm_head.weight"
                )
        self._names = tuple(name for name in self._names if name != "lm_head.weight")
