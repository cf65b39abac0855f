"""Safetensors files: the place of each tensor, and its bytes.

A file has eight bytes of length (little-endian), a JSON header with each tensor's dtype, shape and
byte range, then the bytes. Tensors are read by offset, not mapped, because the pages of a mapping
count as resident memory while it is open. Each read asks the kernel to read ahead
(posix_fadvise(2)), which halves the time spent waiting for a disk.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt

from edgespec.errors import CheckpointError
from export.sources.json_file import read_json

FLOATS: Mapping[str, npt.DTypeLike] = {
    "F32": np.float32,
    "F16": np.float16,
    "BF16": ml_dtypes.bfloat16,
}
_DTYPES: Mapping[str, npt.DTypeLike] = {**FLOATS, "I32": np.int32, "I64": np.int64}
_MAX_HEADER_BYTES = 100_000_000
"""Limit of the safetensors library."""
_READ_AHEAD_BYTES = 1 << 24


@dataclass(frozen=True)
class StoredTensor:
    """A tensor in a file: `nbytes` bytes of `path` from `offset`."""

    path: Path
    offset: int
    nbytes: int
    shape: tuple[int, ...]
    dtype: str

    def read(self) -> npt.NDArray[Any]:
        """Read the complete tensor."""
        return self._read(0, self.nbytes).reshape(self.shape)

    def rows(self, start: int, stop: int) -> npt.NDArray[Any]:
        """Read entries `[start, stop)` of the first axis, and no others."""
        start, stop, _ = slice(start, stop).indices(self.shape[0])
        count = max(stop - start, 0)
        row_bytes = self.nbytes // self.shape[0]
        return self._read(start * row_bytes, count * row_bytes).reshape(count, *self.shape[1:])

    def _read(self, start: int, nbytes: int) -> npt.NDArray[Any]:
        begin = self.offset + start
        try:
            with self.path.open("rb", buffering=0) as file:
                if hasattr(os, "posix_fadvise"):  # not on macOS
                    end = begin + nbytes
                    os.posix_fadvise(file.fileno(), end, _READ_AHEAD_BYTES, os.POSIX_FADV_WILLNEED)
                raw = np.fromfile(file, np.uint8, nbytes, offset=begin)
        except OSError as error:
            raise CheckpointError(f"{self.path} cannot be read ({error.strerror})") from error
        if raw.size != nbytes:
            raise CheckpointError(
                f"{self.path} became shorter while it was read; download it again"
            )
        return raw.view(_DTYPES[self.dtype])


def stored_tensors(folder: Path) -> dict[str, StoredTensor]:
    """Return every tensor of the folder. A single file has priority, as in transformers."""
    single, index = folder / "model.safetensors", folder / "model.safetensors.index.json"
    if single.is_file():
        return read_header(single)[0]
    if index.is_file():
        return _sharded(folder, read_json(index))
    if any(folder.glob("pytorch_model*.bin")):
        raise CheckpointError(
            f"{folder} has its weights in pytorch_model.bin only; convert them to safetensors, for "
            "instance with transformers: AutoModelForCausalLM.from_pretrained(...)"
            ".save_pretrained(...)"
        )
    raise CheckpointError(f"{folder} has no model.safetensors, nor its index; download it again")


def _sharded(folder: Path, index: Mapping[str, Any]) -> dict[str, StoredTensor]:
    where = index.get("weight_map")
    if not isinstance(where, dict) or not all(
        isinstance(file, str) and Path(file).name == file for file in where.values()
    ):
        raise CheckpointError(
            f"{folder / 'model.safetensors.index.json'} has no weight_map from tensors to files "
            "in this folder; download it again"
        )
    headers = {file: read_header(folder / file)[0] for file in sorted(set(where.values()))}
    for name, file in where.items():
        if name not in headers[file]:
            raise CheckpointError(
                f"{folder / file} lacks the tensor {name} that the index lists; download it again"
            )
    return {name: headers[file][name] for name, file in where.items()}


def read_header(path: Path) -> tuple[dict[str, StoredTensor], dict[str, Any]]:
    """Read a file's tensors, checked against its size, and its metadata."""
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if not 2 <= length <= min(size - 8, _MAX_HEADER_BYTES):
                raise ValueError("the header does not fit in the file")
            header = json.loads(file.read(length))
        metadata = dict(header.pop("__metadata__", None) or {})
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
    return stored, metadata


def _entry(path: Path, entry: Mapping[str, Any], base: int) -> StoredTensor:
    start, stop = entry["data_offsets"]
    shape, dtype = tuple(int(n) for n in entry["shape"]), str(entry["dtype"])
    itemsize = np.dtype(_DTYPES[dtype]).itemsize if dtype in _DTYPES else None
    if start < 0 or stop < start or min(shape, default=0) < 0:
        raise ValueError("a tensor's byte range is out of order")
    if itemsize is not None and stop - start != math.prod(shape) * itemsize:
        raise ValueError("a tensor's byte range does not match its shape")
    return StoredTensor(path, base + start, stop - start, shape, dtype)
