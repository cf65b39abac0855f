"""The numbers of a tensor in a graph file, or in the data file beside it.

onnx-ir refuses a data file that has two links, which those of a bundle have where it was copied by
`cp -al` or `rsync --link-dest`, and while it is published; so such a file is mapped here. Types are
named as in ONNX (onnx.proto, `TensorProto.DataType`); two int4 share a byte, the first in its low
half (the same file, `int32_data`).
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from edgespec.errors import BundleError

_STORED: dict[str, Any] = {
    "FLOAT": np.float32,
    "FLOAT16": np.float16,
    "INT8": np.int8,
    "INT4": np.uint8,
    "INT64": np.int64,
}


def numbers(tensor: Any) -> npt.NDArray[Any]:
    """Of a tensor of onnx-ir, in its shape; int4 as int8. What lies in a data file is mapped.

    Raises `BundleError` where the file is missing or too short, lies elsewhere than beside the
    graph, or has a type that no graph of a bundle has.
    """
    if not hasattr(tensor, "location"):
        return np.asarray(tensor.numpy())
    path, kind = Path(tensor.path), tensor.dtype.name
    if path.resolve().parent != Path(tensor.base_dir).resolve():
        raise BundleError(f"{path} does not lie beside its graph; export the bundle again")
    if kind not in _STORED:
        raise BundleError(f"{path}: {tensor.name} is of type {kind}; export the bundle again")
    shape = tuple(tensor.shape.numpy())
    four = kind == "INT4"
    size = ((math.prod(shape) + 1) // 2,) if four else shape
    try:
        stored = np.memmap(path, _STORED[kind], mode="r", offset=tensor.offset or 0, shape=size)
    except (ValueError, OSError) as error:
        raise BundleError(f"{path}: {tensor.name} cannot be read ({error})") from error
    return _halves(stored, shape) if four else stored


def _halves(stored: npt.NDArray[Any], shape: tuple[int, ...]) -> npt.NDArray[Any]:
    """int4 [shape] of two a byte."""
    pairs = np.empty((stored.size, 2), np.int8)
    pairs[:, 0] = (stored << 4).view(np.int8) >> 4
    pairs[:, 1] = stored.view(np.int8) >> 4
    return pairs.reshape(-1)[: math.prod(shape)].reshape(shape)
