"""Arrays in the memory of a device, and pools of slots made of them.

A slot's positions `[start, end)` are a run of `(end - start) * head_dim` elements in each head, and
the runs lie `capacity * head_dim` elements apart, which is what a two-dimensional copy takes.
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
    """Row-major and without gaps. Of bfloat16, which numpy lacks, only the size counts: `uint16`
    stands for it."""

    memory: Buffer | None
    """None for a view, which keeps nothing alive: whoever has the whole array does. So a pool that
    moves gives its memory back at once, whatever was bound to it."""
    address: int
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    place: str

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: slice) -> DeviceArray:
        """A view of the rows `[start, stop)` of the first axis."""
        start, stop, step = rows.indices(self.shape[0])
        assert step == 1
        address = self.address + start * self.nbytes // max(1, self.shape[0])
        shape = (max(0, stop - start), *self.shape[1:])
        return replace(self, memory=None, address=address, shape=shape)

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


class DeviceStore:
    """A `Store` (engines/cache/pools.py) over a device."""

    least = 1

    def __init__(self, device: GpuDevice) -> None:
        self._device = device

    def empty(self, shape: tuple[int, ...], dtype: npt.DTypeLike) -> DeviceArray:
        """Garbage. Raises `EngineError` where there is no room."""
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
        (to, to_pitch), (at, at_pitch) = _slot(target, index, start), _slot(source, place, start)
        _, heads, _, head_dim = target.shape
        width = (end - start) * head_dim * target.dtype.itemsize
        self._device.copy(to, to_pitch, at, at_pitch, width, heads)


def _slot(array: DeviceArray, index: int, start: int) -> tuple[int, int]:
    """Where position `start` of a slot lies, and the bytes from one head to the next."""
    _, heads, capacity, head_dim = array.shape
    position = head_dim * array.dtype.itemsize
    return array.address + (index * heads * capacity + start) * position, capacity * position


def device_pools(device: GpuDevice) -> MakePool:
    """Pools whose slots lie in the memory of a device."""
    return partial(GrowingPool, DeviceStore(device))
