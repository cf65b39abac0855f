"""Arrays in a GPU's memory, and pools of slots that consist of them.

Positions `[start, end)` of a slot are one run of `(end - start) * head_dim` elements in each head.
The runs are `capacity * head_dim` elements apart, so one two-dimensional copy moves them all.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

from engines.cache.pools import GrowingPool, MakePool
from engines.cuda import Buffer, GpuDevice


@dataclass(frozen=True, eq=False)
class DeviceArray:
    """A contiguous, row-major array. bfloat16, which numpy lacks, is stored as `uint16`."""

    memory: Buffer | None
    """None for a view, which does not keep the memory alive: a pool that moves frees its memory at
    once, even if old views of it are still bound somewhere."""
    address: int
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    place: str

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: slice) -> DeviceArray:
        """Returns a view of the rows `[start, stop)` of the first axis."""
        start, stop, step = rows.indices(self.shape[0])
        assert step == 1
        address = self.address + start * self.nbytes // max(1, self.shape[0])
        shape = (max(0, stop - start), *self.shape[1:])
        return replace(self, memory=None, address=address, shape=shape)

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


class DeviceStore:
    """A `Store` (engines/cache/pools.py) in a GPU's memory."""

    min_slots = 1

    def __init__(self, device: GpuDevice) -> None:
        self._device = device

    def empty(self, shape: tuple[int, ...], dtype: npt.DTypeLike) -> DeviceArray:
        """Returns an uninitialised array. Raises `EngineError` if the memory is full."""
        kind = np.dtype(dtype)
        memory = self._device.allocate(math.prod(shape) * kind.itemsize)
        return DeviceArray(memory, memory.address, shape, kind, self._device.place)

    def zeros(self, shape: tuple[int, ...], dtype: npt.DTypeLike) -> DeviceArray:
        array = self.empty(shape, dtype)
        self._device.fill(array.address, array.nbytes)
        return array

    def copy(
        self, target: DeviceArray, index: int, source: DeviceArray, place: int, start: int, end: int
    ) -> None:
        if start >= end:
            return
        to_address, to_pitch = _position(target, index, start)
        from_address, from_pitch = _position(source, place, start)
        _, heads, _, head_dim = target.shape
        width = (end - start) * head_dim * target.dtype.itemsize
        self._device.copy(to_address, to_pitch, from_address, from_pitch, width, heads)


def _position(array: DeviceArray, index: int, start: int) -> tuple[int, int]:
    """Returns the address of a slot's position, and the bytes from one head to the next."""
    _, heads, capacity, head_dim = array.shape
    position_bytes = head_dim * array.dtype.itemsize
    address = array.address + (index * heads * capacity + start) * position_bytes
    return address, capacity * position_bytes


def device_pools(device: GpuDevice) -> MakePool:
    """Returns the constructor of pools whose slots are in the GPU's memory."""
    return partial(GrowingPool, DeviceStore(device))
