"""Pools: arrays `[slots, kv_heads, capacity, head_dim]` that hold slots of one capacity.

There are several capacities, because the time of attention grows with the capacity in some runtimes
(ONNX Runtime on a CPU, one token over 256 cached positions: 161 µs at 2048, 40 µs at 512).

In host memory a pool reserves the addresses of all its slots once, so no address changes. Only
pages that were written take memory, and the pages of a slot that leaves are freed. Freed pages read
as zeros. This is necessary: a masked position has weight 0, and 0 times a NaN from stray bits would
be NaN. A GPU's memory cannot be reserved without taking it, so there a pool grows and shrinks.
"""

from __future__ import annotations

import mmap
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from edgespec.errors import EngineError

CAPACITIES = (256, 512, 1024, 2048)
"""Default capacities in positions; above the last, multiples of it."""
GROWTH_SLOTS = 4
"""Slots by which a growing pool grows, as far as they fit into `GROWTH_BYTES`."""
GROWTH_BYTES = 32 << 20
GROWTH_DIVISOR = 4
"""A growing pool grows by at least its size divided by this, since growing copies all of it."""


def capacity_for(positions: int, capacities: Sequence[int] = CAPACITIES) -> int:
    """Returns the smallest capacity that holds `positions`."""
    for capacity in capacities:
        if positions <= capacity:
            return capacity
    return -(-positions // capacities[-1]) * capacities[-1]


@dataclass(frozen=True)
class CacheTensor:
    """A cache input of the graph, `[heads, capacity, head_dim]` for each slot."""

    name: str
    heads: int
    head_dim: int
    dtype: npt.DTypeLike

    def bytes(self, positions: int) -> int:
        return self.heads * self.head_dim * np.dtype(self.dtype).itemsize * positions


class Pool:
    """Slots of one capacity, in arrays that a subclass provides."""

    def __init__(self, capacity: int, slots: int) -> None:
        self.capacity = capacity
        self.arrays: dict[str, Any] = {}
        """Arrays by tensor name, `[slots, heads, capacity, head_dim]`."""
        self.occupants: list[int] = []
        """Slot ids by index in the arrays."""
        self.generation = 0
        """Increases when the arrays move to other addresses."""
        self._slots = slots

    @property
    def bytes(self) -> int:
        """Bytes that the pool has taken, for slots and as spare capacity; 0 in host memory."""
        return 0

    @property
    def slot_bytes(self) -> int:
        """Bytes that one more slot takes; 0 in host memory."""
        return 0

    @property
    def grows(self) -> bool:
        """True if the next slot needs more memory than the pool has taken."""
        return False

    def grow(self, free: int | None = None) -> None:
        """Takes memory for the next slot, and for spare slots as far as they fit into `free` bytes.

        Raises `EngineError`, without a change, if the memory is full.
        """

    def take(self, slot: int) -> int:
        """Adds a slot and returns its index. Raises `EngineError` when all slots are taken."""
        if len(self.occupants) == self._slots:
            raise EngineError(f"all {self._slots} slots of {self.capacity} positions are taken")
        self.occupants.append(slot)
        return len(self.occupants) - 1

    def give_back(self, index: int) -> None:
        """Frees the memory of the last index, after its slot has left."""

    def trim(self) -> None:
        """Frees the spare capacity as far as possible."""

    def copy(self, index: int, source: Pool, place: int, start: int, end: int) -> None:
        """Copies positions `[start, end)` from index `place` of pool `source` to `index` here."""
        for name, array in self.arrays.items():
            array[index, :, start:end] = source.arrays[name][place, :, start:end]


MakePool = Callable[[Sequence[CacheTensor], int, int], Pool]
"""Makes a pool from tensors, a capacity and the largest number of slots."""


class HostPool(Pool):
    """A pool in host memory. Raises `EngineError` if the addresses cannot be reserved."""

    def __init__(self, tensors: Sequence[CacheTensor], capacity: int, slots: int) -> None:
        super().__init__(capacity, slots)
        self._ranges: list[tuple[int, int]] = []
        """Offset of each tensor in the mapping, and its bytes for one slot."""
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
        """Frees the pages that lie entirely in an unoccupied index."""
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
    """Returns zeroed memory. Where the system allows it, a page takes memory when first written."""
    try:
        if not hasattr(mmap, "MAP_ANONYMOUS"):
            return mmap.mmap(-1, size)
        flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | getattr(mmap, "MAP_NORESERVE", 0)
        memory = mmap.mmap(-1, size, flags=flags)
        if hasattr(mmap, "MADV_NOHUGEPAGE"):  # a huge page would cost 2 MB for each tensor and slot
            memory.madvise(mmap.MADV_NOHUGEPAGE)
        return memory
    except (OSError, OverflowError, ValueError) as error:
        raise EngineError(
            f"there is no memory for {slots} sessions of {capacity} positions"
        ) from error


class Store(Protocol):
    """Memory that is taken when it is allocated, such as a GPU's."""

    @property
    def min_slots(self) -> int:
        """Smallest number of slots of an array."""

    def zeros(self, shape: tuple[int, ...], dtype: npt.DTypeLike) -> Any:
        """Returns a zeroed array. Raises `EngineError` if the memory is full."""

    def copy(self, target: Any, index: int, source: Any, place: int, start: int, end: int) -> None:
        """Sets `target[index, :, start:end]` to `source[place, :, start:end]`; no overlap."""


class GrowingPool(Pool):
    """A pool whose arrays are replaced when slots are added or most of them have left.

    The arrays are replaced one at a time, so resizing needs the memory of one additional tensor and
    not of a second pool. If that fails half-way, some arrays are longer than others; `arrays` shows
    the slots that all of them have.
    """

    def __init__(
        self, store: Store, tensors: Sequence[CacheTensor], capacity: int, slots: int
    ) -> None:
        super().__init__(capacity, slots)
        self._store, self._tensors = store, tensors
        self._size = 0
        """Number of slots in `arrays`."""
        self._stored: dict[str, Any] = {}
        """Arrays by tensor name; `arrays` are views of them."""

    @property
    def bytes(self) -> int:
        stored = self._stored
        return sum(
            len(stored[tensor.name]) * tensor.bytes(self.capacity)
            for tensor in self._tensors
            if tensor.name in stored
        )

    @property
    def slot_bytes(self) -> int:
        return sum(tensor.bytes(self.capacity) for tensor in self._tensors)

    @property
    def grows(self) -> bool:
        return self._size <= len(self.occupants) < self._slots

    def grow(self, free: int | None = None) -> None:
        taken = len(self.occupants)
        growth = self._growth(taken)
        if free is not None:
            growth = max(1, min(growth, free // self.slot_bytes))
        try:
            self._resize(min(self._slots, taken + growth))
        except EngineError:
            self._try_shrink(self._size)
            raise

    def give_back(self, index: int) -> None:
        if index == 0 or index < self._size // 2:
            self._try_shrink(index + self._growth(index) if index else 0)

    def trim(self) -> None:
        self._try_shrink(len(self.occupants))

    def copy(self, index: int, source: Pool, place: int, start: int, end: int) -> None:
        for name, array in self.arrays.items():
            self._store.copy(array, index, source.arrays[name], place, start, end)

    def _growth(self, size: int) -> int:
        """Returns the number of slots that a pool of `size` slots grows by."""
        growth = min(GROWTH_SLOTS, GROWTH_BYTES // self.slot_bytes)
        return max(1, growth, size // GROWTH_DIVISOR)

    def _try_shrink(self, size: int) -> None:
        """Shrinks to `size` slots if there is memory for the copy."""
        with suppress(EngineError):
            self._resize(min(self._size, size))

    def _resize(self, size: int) -> None:
        """Replaces the arrays by arrays of `size` slots; a slot keeps its index.

        Raises `EngineError` if there is no memory for one more tensor; every occupant is then still
        in the arrays.
        """
        size = max(size, self._store.min_slots) if size else 0
        if all(len(self._stored.get(tensor.name, ())) == size for tensor in self._tensors):
            return
        self.generation += 1
        self.arrays = {}  # a view may keep the memory of a replaced array alive
        try:
            if size:
                for tensor in self._tensors:
                    self._replace(tensor, size)
            else:
                self._stored = {}
        finally:
            self._update_views()

    def _replace(self, tensor: CacheTensor, size: int) -> None:
        before = self._stored.get(tensor.name, ())
        if len(before) == size:
            return
        array = self._store.zeros(
            (size, tensor.heads, self.capacity, tensor.head_dim), tensor.dtype
        )
        for index in range(min(len(self.occupants), self._size, size)):
            self._store.copy(array, index, before, index, 0, self.capacity)
        self._stored[tensor.name] = array

    def _update_views(self) -> None:
        """Makes `arrays` show the slots that all stored arrays have."""
        lengths = [len(self._stored.get(tensor.name, ())) for tensor in self._tensors]
        self._size = min(lengths, default=0)
        self.arrays = {name: array[: self._size] for name, array in self._stored.items()}
