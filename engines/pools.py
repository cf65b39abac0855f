"""Where keys and values lie: slots of one capacity, `[slots, kv_heads, capacity, head_dim]`.

Capacities are buckets, because attention costs time for the whole capacity in some runtimes (ONNX
Runtime's on a CPU, one token over 256 cached positions: 161 µs at 2048, 40 µs at 512).

In a host's memory a pool maps the addresses of all slots that there may ever be, once: no address
into it goes stale. Memory is only what was written; the pages of a slot that leaves are given back.
They read as zeros, as they must: a masked position weighs 0, and 0 times the NaN of stray bits
would be NaN. A GPU's memory cannot be promised twice, so there a pool grows and shrinks instead.
"""

from __future__ import annotations

import mmap
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from edgespec.errors import EngineError

BUCKETS = (256, 512, 1024, 2048)
"""Positions; beyond the last, multiples of it."""
FIRST_SLOTS = 4
"""That a growing pool begins with."""


def bucket(positions: int, capacities: Sequence[int] = BUCKETS) -> int:
    """The smallest capacity that holds `positions`."""
    for capacity in capacities:
        if positions <= capacity:
            return capacity
    return -(-positions // capacities[-1]) * capacities[-1]


@dataclass(frozen=True)
class CacheTensor:
    """A cache input of the graph; for each slot `[heads, capacity, head_dim]`."""

    name: str
    heads: int
    head_dim: int
    dtype: npt.DTypeLike

    def bytes(self, positions: int) -> int:
        return self.heads * self.head_dim * np.dtype(self.dtype).itemsize * positions


class Pool:
    """Slots of one capacity."""

    def __init__(self, capacity: int, slots: int) -> None:
        self.capacity = capacity
        self.arrays: dict[str, Any] = {}
        """By tensor, `[slots, heads, capacity, head_dim]`."""
        self.occupants: list[int] = []
        """Slot ids, by index in the arrays."""
        self.generation = 0
        """Goes up when the arrays lie elsewhere than before."""
        self._slots = slots

    def take(self, slot: int) -> int:
        """The index of a slot that comes. Raises `EngineError` when all are taken."""
        if len(self.occupants) == self._slots:
            raise EngineError(f"all {self._slots} slots of {self.capacity} positions are taken")
        self.occupants.append(slot)
        return len(self.occupants) - 1

    def give_back(self, index: int) -> None:
        """The memory of an index that nobody occupies, the last one, may be used otherwise."""

    def copy(self, index: int, source: Pool, place: int, start: int, end: int) -> None:
        """Copies positions `[start, end)` from index `place` of a pool to `index` of this one."""
        for name, array in self.arrays.items():
            array[index, :, start:end] = source.arrays[name][place, :, start:end]


MakePool = Callable[[Sequence[CacheTensor], int, int], Pool]
"""Tensors, capacity, and slots at most."""


class HostPool(Pool):
    """In a host's memory. Raises `EngineError` where so many addresses cannot be had."""

    def __init__(self, tensors: Sequence[CacheTensor], capacity: int, slots: int) -> None:
        super().__init__(capacity, slots)
        self._ranges: list[tuple[int, int]] = []
        """Of each tensor, where it begins in the mapping, and the bytes of a slot."""
        begin = 0
        for tensor in tensors:
            self._ranges.append((begin, tensor.bytes(capacity)))
            begin = _page_up(begin + slots * tensor.bytes(capacity))
        self._memory = _mapping(begin, slots, capacity)
        for tensor, (offset, size) in zip(tensors, self._ranges, strict=True):
            dtype = np.dtype(tensor.dtype)
            flat = np.frombuffer(self._memory, dtype, slots * size // dtype.itemsize, offset)
            self.arrays[tensor.name] = flat.reshape(slots, tensor.heads, capacity, tensor.head_dim)

    def give_back(self, index: int) -> None:
        """The whole pages of an index that nobody occupies become free memory."""
        advise = getattr(self._memory, "madvise", None)
        if advise is None:
            return
        for begin, size in self._ranges:
            start = _page_up(begin + index * size)
            end = (begin + (index + 1) * size) // mmap.PAGESIZE * mmap.PAGESIZE
            if start < end:
                advise(mmap.MADV_DONTNEED, start, end - start)


def _page_up(size: int) -> int:
    return -(-size // mmap.PAGESIZE) * mmap.PAGESIZE


def _mapping(size: int, slots: int, capacity: int) -> mmap.mmap:
    """Zeroed memory that is taken page by page as it is written, where the system can do that."""
    try:
        if not hasattr(mmap, "MAP_ANONYMOUS"):
            return mmap.mmap(-1, size)
        flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | getattr(mmap, "MAP_NORESERVE", 0)
        memory = mmap.mmap(-1, size, flags=flags)
        if hasattr(mmap, "MADV_NOHUGEPAGE"):  # a slot is to cost what it holds, not 2 MB a tensor
            memory.madvise(mmap.MADV_NOHUGEPAGE)
        return memory
    except (OSError, OverflowError, ValueError) as error:
        raise EngineError(
            f"there is no memory for {slots} sessions of {capacity} positions"
        ) from error


class Store(Protocol):
    """Memory that is not promised before it is there, such as a GPU's."""

    def zeros(self, shape: tuple[int, ...], dtype: npt.DTypeLike) -> Any:
        """Raises `EngineError` where there is no room."""

    def copy(self, target: Any, index: int, source: Any, place: int, start: int, end: int) -> None:
        """`target[index, :, start:end] = source[place, :, start:end]`; the two do not overlap."""


class GrowingPool(Pool):
    """Arrays that are replaced, one after the other, when slots come or most of them have left."""

    def __init__(
        self, store: Store, tensors: Sequence[CacheTensor], capacity: int, slots: int
    ) -> None:
        super().__init__(capacity, slots)
        self._store, self._tensors = store, tensors
        self._size = 0

    def take(self, slot: int) -> int:
        index = super().take(slot)
        if index == self._size:
            try:
                self._resize(min(self._slots, max(FIRST_SLOTS, self._size * 3 // 2)))
            except EngineError:
                self.occupants.pop()
                raise
        return index

    def give_back(self, index: int) -> None:
        if index < self._size // 3 and self._size > FIRST_SLOTS:
            self._resize(max(FIRST_SLOTS, self._size // 2))

    def copy(self, index: int, source: Pool, place: int, start: int, end: int) -> None:
        for name, array in self.arrays.items():
            self._store.copy(array, index, source.arrays[name], place, start, end)

    def _resize(self, size: int) -> None:
        """The slots that stay keep their index."""
        kept = min(self._size, size)
        self.generation += 1  # first, since the store may fail on the way
        for tensor in self._tensors:
            shape = (size, tensor.heads, self.capacity, tensor.head_dim)
            array = self._store.zeros(shape, tensor.dtype)
            before = self.arrays.get(tensor.name)
            for index in range(kept):
                self._store.copy(array, index, before, index, 0, self.capacity)
            self.arrays[tensor.name] = array
        self._size = size
