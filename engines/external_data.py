"""Values of a tensor in an ONNX graph file or in its external data file.

onnx-ir refuses a data file with two hard links. A bundle's files have two links while the bundle is
published, and after a copy by `cp -al` or `rsync --link-dest`. This module maps such files itself.
Type names are those of ONNX (onnx.proto, `TensorProto.DataType`). Two int4 values share a byte, the
first one in the low half (onnx.proto, `int32_data`).
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
    """Returns the values of an onnx-ir tensor in its shape, int4 as int8. Maps external data.

    Raises `BundleError` if the data file is missing or too short, is not in the graph's folder, or
    has a type that no graph of a bundle uses.
    """
    if not hasattr(tensor, "location"):
        return np.asarray(tensor.numpy())
    path, kind = Path(tensor.path), tensor.dtype.name
    if path.resolve().parent != Path(tensor.base_dir).resolve():
        raise BundleError(f"{path} does not lie beside its graph; export the bundle again")
    if kind not in _STORED:
        raise BundleError(f"{path}: {tensor.name} is of type {kind}; export the bundle again")
    shape = tuple(tensor.shape.numpy())
    packed = kind == "INT4"
    size = ((math.prod(shape) + 1) // 2,) if packed else shape
    try:
        stored = np.memmap(path, _STORED[kind], mode="r", offset=tensor.offset or 0, shape=size)
    except (ValueError, OSError) as error:
        raise BundleError(f"{path}: {tensor.name} cannot be read ({error})") from error
    return _unpacked(stored, shape) if packed else stored


def _unpacked(stored: npt.NDArray[Any], shape: tuple[int, ...]) -> npt.NDArray[Any]:
    """Returns int8 [shape] from packed int4, two values a byte."""
    pairs = np.empty((stored.size, 2), np.int8)
    pairs[:, 0] = (stored << 4).view(np.int8) >> 4
    pairs[:, 1] = stored.view(np.int8) >> 4
    return pairs.reshape(-1)[: math.prod(shape)].reshape(shape)
