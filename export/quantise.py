"""Rounding a weight matrix to blocks of int8 or int4, for ONNX `DequantizeLinear`.

The scheme is symmetric, with one positive scale for 32 consecutive inputs of an output:
`w ≈ q * scale`. TensorRT takes positive scales only, so the value -8 of int4 is used by the choice
of the scale, not of its sign: each block takes the scale between amax/8 and amax/6 with the least
squared error.
"""

from __future__ import annotations

from typing import Any, Literal

import ml_dtypes
import numpy as np
import numpy.typing as npt

from edgespec.checkpoint import BLOCK_INPUTS

_INT4_DIVISORS = (7.0, 8.0, 7.5, 6.5, 6.0)
"""Largest weight of a block over its scale."""
_SLICE_COLUMNS = 4096
"""Columns quantised at a time, a bound of the scratch memory."""


def quantise(
    matrix: npt.NDArray[Any], bits: Literal[4, 8]
) -> tuple[npt.NDArray[Any], npt.NDArray[np.float32]]:
    """Round a float matrix `[inputs, outputs]`, with `inputs` a multiple of 32.

    Returns values (int8, or ml_dtypes.int4) of the same shape, and float32 scales
    `[inputs / 32, outputs]`.
    """
    inputs, outputs = matrix.shape
    if inputs % BLOCK_INPUTS:
        raise ValueError(f"{inputs} inputs are not a multiple of {BLOCK_INPUTS}")
    values = np.empty(matrix.shape, np.int8 if bits == 8 else ml_dtypes.int4)
    scales = np.empty((inputs // BLOCK_INPUTS, outputs), np.float32)
    for start in range(0, outputs, _SLICE_COLUMNS):
        cut = slice(start, start + _SLICE_COLUMNS)
        blocks = matrix[:, cut].astype(np.float32).reshape(inputs // BLOCK_INPUTS, BLOCK_INPUTS, -1)
        rounded, scales[:, cut] = _round(blocks, bits)
        values[:, cut] = rounded.reshape(inputs, -1).astype(values.dtype)
    return values, scales


def _round(
    blocks: npt.NDArray[np.float32], bits: int
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    """Round `[groups, 32, outputs]`. Return values of that shape and scales `[groups, outputs]`."""
    low, high = -(2 ** (bits - 1)), 2 ** (bits - 1) - 1
    largest = np.abs(blocks).max(axis=1)
    largest[largest == 0] = 1.0
    best = np.empty_like(blocks)
    best_scale = np.empty_like(largest)
    best_error = np.full_like(largest, np.inf)
    for divisor in (127.0,) if bits == 8 else _INT4_DIVISORS:
        scale = largest / np.float32(divisor)
        rounded = np.clip(np.rint(blocks / scale[:, None]), low, high)
        error = ((rounded * scale[:, None] - blocks) ** 2).sum(axis=1)
        better = error < best_error
        best = np.where(better[:, None], rounded, best)
        best_scale = np.where(better, scale, best_scale)
        best_error = np.where(better, error, best_error)
    return best, best_scale
