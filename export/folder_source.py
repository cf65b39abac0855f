"""A Hugging Face folder: `config.json`, safetensors in one file or several, `tokenizer.json`.

A safetensors file is eight bytes of length (little-endian), a JSON header that gives each tensor's
dtype, shape and byte range, then the bytes. They are read by offset rather than mapped, because the
pages of a mapping count as resident memory for as long as it is open.
"""

from __future__ import annotations

import json
import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt

from edgespec.checkpoint import Blocks
from edgespec.errors import CheckpointError, UnsupportedModel
from export.families import architecture_from_config, check_tensors
from export.json_file import read_json
from export.rope import rope_from_config
from export.tokenizer import tokenizer_from_folder

_DTYPES: Mapping[str, npt.DTypeLike] = {
    "F32": np.float32,
    "F16": np.float16,
    "BF16": ml_dtypes.bfloat16,
}
_LARGEST_HEADER = 100_000_000
"""As in the safetensors library."""
_CHUNK_ROWS = 1024


@dataclass(frozen=True)
class _Stored:
    """Where a tensor lies: `nbytes` bytes of `path` from `offset`."""

    path: Path
    offset: int
    nbytes: int
    shape: tuple[int, ...]
    dtype: str


class FolderCheckpoint:
    """A folder as transformers writes it, checked to be supported and complete."""

    def __init__(self, folder: Path, *, name: str | None = None, revision: str = "") -> None:
        if not (folder / "config.json").is_file():
            raise CheckpointError(
                f"{folder} has no config.json; give a folder as transformers saves it, "
                "or the GGUF file itself"
            )
        config = read_json(folder / "config.json")
        self.name = name or folder.resolve().name
        self.revision = revision
        self.architecture = architecture_from_config(config)
        self.rope = rope_from_config(config, self.architecture.head_dim)
        self._stored = _stored_tensors(folder)
        shapes = {name: stored.shape for name, stored in self._stored.items()}
        self._names = check_tensors(self.architecture, shapes, str(folder))
        self._check_dtypes()
        self._check_tie(folder)
        self.tokenizer = tokenizer_from_folder(folder, config)

    def names(self) -> Collection[str]:
        return self._names

    def shape(self, name: str) -> tuple[int, ...]:
        return self._stored[name].shape

    def nbytes(self, name: str) -> int:
        return self._stored[name].nbytes

    def tensor(self, name: str) -> npt.NDArray[Any]:
        stored = self._stored[name]
        return _read(stored, 0, stored.nbytes).reshape(stored.shape)

    def blocks(self, name: str) -> Blocks | None:  # noqa: ARG002
        return None

    def rows(self, name: str, start: int, stop: int) -> npt.NDArray[Any]:
        stored = self._stored[name]
        start, stop, _ = slice(start, stop).indices(stored.shape[0])
        count = max(stop - start, 0)
        row_bytes = stored.nbytes // stored.shape[0]
        return _read(stored, start * row_bytes, count * row_bytes).reshape(count, *stored.shape[1:])

    def _check_dtypes(self) -> None:
        for name in self._names:
            stored = self._stored[name]
            if stored.dtype not in _DTYPES:
                raise UnsupportedModel(
                    f"{stored.path}: tensor {name} has the dtype {stored.dtype}; "
                    f"{', '.join(_DTYPES)} are supported"
                )

    def _check_tie(self, folder: Path) -> None:
        """A tied checkpoint may repeat the embedding as its output matrix, but not alter it."""
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
                    "lm_head.weight differs from it; set tie_word_embeddings to false if it counts"
                )
        self._names = tuple(name for name in self._names if name != "lm_head.weight")


def _read(stored: _Stored, start: int, nbytes: int) -> npt.NDArray[Any]:
    try:
        raw = np.fromfile(stored.path, np.uint8, nbytes, offset=stored.offset + start)
    except OSError as error:
        raise CheckpointError(f"{stored.path} cannot be read ({error.strerror})") from error
    if raw.size != nbytes:
        raise CheckpointError(f"{stored.path} became shorter while it was read; download it again")
    return raw.view(_DTYPES[stored.dtype])


def _stored_tensors(folder: Path) -> dict[str, _Stored]:
    """Every tensor of the folder; the single file comes first, as in transformers."""
    single, index = folder / "model.safetensors", folder / "model.safetensors.index.json"
    if single.is_file():
        return _header(single)
    if index.is_file():
        return _sharded(folder, read_json(index))
    if any(folder.glob("pytorch_model*.bin")):
        raise CheckpointError(
            f"{folder} has its weights in pytorch_model.bin only; convert them to safetensors, for "
            "instance with transformers: AutoModelForCausalLM.from_pretrained(...)"
            ".save_pretrained(...)"
        )
    raise CheckpointError(f"{folder} has no model.safetensors, nor its index; download it again")


def _sharded(folder: Path, index: Mapping[str, Any]) -> dict[str, _Stored]:
    where = index.get("weight_map")
    if not isinstance(where, dict) or not all(
        isinstance(file, str) and Path(file).name == file for file in where.values()
    ):
        raise CheckpointError(
            f"{folder / 'model.safetensors.index.json'} has no weight_map from tensors to files "
            "in this folder; download it again"
        )
    headers = {file: _header(folder / file) for file in sorted(set(where.values()))}
    for name, file in where.items():
        if name not in headers[file]:
            raise CheckpointError(
                f"{folder / file} lacks the tensor {name} that the index promises; "
                "download it again"
            )
    return {name: headers[file][name] for name, file in where.items()}


def _header(path: Path) -> dict[str, _Stored]:
    """Parse and check a file's header against its size."""
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if not 2 <= length <= min(size - 8, _LARGEST_HEADER):
                raise ValueError("the header does not fit in the file")
            header = json.loads(file.read(length))
        header.pop("__metadata__", None)
        stored = {name: _entry(path, entry, 8 + length) for name, entry in header.items()}
        if any(one.offset + one.nbytes > size for one in stored.values()):
            raise ValueError("the file ends before its last tensor")
    except OSError as error:
        raise CheckpointError(
            f"{path} cannot be read ({error.strerror}); complete the download"
        ) from error
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise CheckpointError(
            f"{path} is truncated or not a safetensors file ({error}); download it again"
        ) from error
    return stored


def _entry(path: Path, entry: Mapping[str, Any], base: int) -> _Stored:
    start, stop = entry["data_offsets"]
    shape, dtype = tuple(int(n) for n in entry["shape"]), str(entry["dtype"])
    itemsize = np.dtype(_DTYPES[dtype]).itemsize if dtype in _DTYPES else None
    if start < 0 or stop < start or min(shape, default=0) < 0:
        raise ValueError("a tensor's byte range is out of order")
    if itemsize is not None and stop - start != math.prod(shape) * itemsize:
        raise ValueError("a tensor's byte range does not match its shape")
    return _Stored(path, base + start, stop - start, shape, dtype)
