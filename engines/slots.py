"""The KV cache of a back end whose memory is numpy's: fixed slots, written in place.

Slots of one capacity live in one pool, an array `[slots, kv_heads, capacity, head_dim]` for each
cache tensor, so that a run of neighbours is a batch without copying. Capacities are buckets,
because ONNX Runtime's attention costs time for the whole capacity (one token over 256 cached
positions: 161 µs at 2048, 40 µs at 512). A slot is copied only when it outgrows its bucket, when it
is laid to rest among others that do not run, or to close the gap that another one left, which keeps
a pool's slots neighbours.

A pool maps the addresses of all slots that there may ever be, once: no address into it goes stale.
Memory is only what was written; the pages of a slot that leaves are given back. They read as zeros,
as they must: a masked position weighs 0, and 0 times the NaN of stray bits would be NaN.
"""

from __future__ import annotations

import itertools
import mmap
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from edgespec.errors import EngineError

BUCKETS = (256, 512, 1024, 2048)
"""Positions; beyond the last, multiples of it."""


def bucket(positions: int) -> int:
    """The smallest capacity that holds `positions`."""
    for capacity in BUCKETS:
        if positions <= capacity:
            return capacity
    return -(-positions // BUCKETS[-1]) * BUCKETS[-1]


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
    """Slots of one capacity. Raises `EngineError` where so many addresses cannot be had."""

    def __init__(self, tensors: Sequence[CacheTensor], capacity: int, slots: int) -> None:
        self.capacity = capacity
        self.arrays: dict[str, npt.NDArray[Any]] = {}
        """By tensor, `[slots, heads, capacity, head_dim]`."""
        self.occupants: list[int] = []
        """Slot ids, by index in the arrays."""
        self._slots = slots
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

    def take(self, slot: int) -> int:
        """The index of a slot that comes. Raises `EngineError` when all are taken."""
        if len(self.occupants) == self._slots:
            raise EngineError(f"all {self._slots} slots of {self.capacity} positions are taken")
        self.occupants.append(slot)
        return len(self.occupants) - 1

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


class SlotCache:
    """Which slot lies where, and how much of it is filled."""

    def __init__(self, tensors: Sequence[CacheTensor], slots: int) -> None:
        self.slots = slots
        self.length: dict[int, int] = {}
        self._tensors = tensors
        self._position_bytes = sum(tensor.bytes(1) for tensor in tensors)
        self._memory = 0
        self._still = False
        self._closing: list[int] = []
        self._resting: list[int] = []
        self._pools: dict[tuple[int, bool], Pool] = {}
        """By capacity, and whether it is for slots at rest."""
        self._place: dict[int, tuple[Pool, int]] = {}

    def limit(self, memory: int) -> None:
        """From now on there are as many slots as fit into so many bytes, at least one of each
        capacity. Before the first is reserved, since a pool is mapped once."""
        assert not self._pools
        self._memory = memory
        self.slots = max(1, memory // self.slot_bytes(1))

    def slot_bytes(self, positions: int) -> int:
        """Bytes of a slot that holds so many positions."""
        return bucket(positions) * self._position_bytes

    def open(self) -> int:
        if len(self.length) - len(self._closing) >= self.slots:
            raise EngineError(f"all {self.slots} slots are taken")
        slot = next(number for number in itertools.count() if number not in self.length)
        self.length[slot] = 0
        return slot

    def close(self, slot: int) -> None:
        """Gives a slot back, at once or, while the cache is held still, as soon as it is not."""
        if self._still:
            self._closing.append(slot)
            return
        if slot in self._place:
            self._vacate(slot)
        del self.length[slot]

    def rest(self, slot: int) -> None:
        """Moves a slot out of the way of those that run, to the smallest bucket that holds it, at
        once or as soon as may be."""
        if self._still:
            self._resting.append(slot)
        elif slot in self._place:
            self._move(slot, self._pool(bucket(self.length[slot]), resting=True))

    @contextmanager
    def still(self) -> Iterator[None]:
        """While the block runs no slot moves, since a batch in flight knows where its slots lie."""
        self._still = True
        try:
            yield
        finally:
            self._still = False
            while self._closing:
                self.close(self._closing.pop())
            while self._resting:
                slot = self._resting.pop()
                if slot in self.length:
                    self.rest(slot)

    def place(self, slot: int) -> tuple[Pool, int]:
        """The pool that holds a slot, and its index there. The slot must have been reserved."""
        return self._place[slot]

    def reserve(self, slot: int, positions: int) -> None:
        """Makes room for `positions` among the slots that run, moving what is cached if need be."""
        capacity = bucket(positions)
        if slot in self._place:
            pool = self._place[slot][0]
            capacity = max(capacity, pool.capacity)
            if pool is self._pools.get((capacity, False)):
                return
        self._move(slot, self._pool(capacity, resting=False))

    def copy(self, source: int, target: int, start: int, end: int) -> None:
        """Copies positions `[start, end)` between slots; `target` then holds `end` positions.

        Raises `ValueError` where `target` holds fewer than `start` or `source` fewer than `end`.
        """
        if not 0 <= start <= self.length[target] or not start <= end <= self.length[source]:
            raise ValueError(
                f"[{start}, {end}) cannot be copied from a slot of {self.length[source]} positions "
                f"to one of {self.length[target]}"
            )
        if source != target and start < end:
            self.length[target] = start
            self.reserve(target, end)
            self._copy(self._place[source], self._place[target], end, start)
        self.length[target] = end

    def _pool(self, capacity: int, *, resting: bool) -> Pool:
        key = (capacity, resting)
        if key not in self._pools:
            slots = self.slots
            if self._memory:
                slots = max(1, min(slots, self._memory // self.slot_bytes(capacity)))
            self._pools[key] = Pool(self._tensors, capacity, slots)
        return self._pools[key]

    def _move(self, slot: int, pool: Pool) -> None:
        """Puts a slot, with what it holds, into a pool."""
        if slot in self._place and self._place[slot][0] is pool:
            return
        index = pool.take(slot)
        if slot in self._place:
            self._copy(self._place[slot], (pool, index), self.length[slot])
            self._vacate(slot)
        self._place[slot] = (pool, index)

    def _vacate(self, slot: int) -> None:
        """Takes the slot out of its pool; the pool's last one moves into the gap."""
        pool, index = self._place.pop(slot)
        last = pool.occupants.pop()
        if last != slot:
            self._copy((pool, len(pool.occupants)), (pool, index), self.length[last])
            pool.occupants[index] = last
            self._place[last] = (pool, index)
        pool.give_back(len(pool.occupants))

    def _copy(
        self, source: tuple[Pool, int], target: tuple[Pool, int], end: int, start: int = 0
    ) -> None:
        (a, i), (b, j) = source, target
        for name, array in a.arrays.items():
            b.arrays[name][j, :, start:end] = array[i, :, start:end]


class SlotEngine:
    """The part of an `Engine` that is about slots, for back ends over a `SlotCache`."""

    def __init__(self, cache: SlotCache) -> None:
        self._cache = cache

    @property
    def slots(self) -> int:
        return self._cache.slots

    def limit(self, memory: int) -> None:
        """Bounds the slots in bytes. Before the first row."""
        self._cache.limit(memory)

    def slot_bytes(self, positions: int) -> int:
        return self._cache.slot_bytes(positions)

    def open(self) -> int:
        return self._cache.open()

    def close(self, slot: int) -> None:
        self._cache.close(slot)

    def rest(self, slot: int) -> None:
        self._cache.rest(slot)

    def truncate(self, slot: int, length: int) -> None:
        self._cache.length[slot] = min(length, self._cache.length[slot])

    def copy(self, source: int, target: int, start: int, end: int) -> None:
        self._cache.copy(source, target, start, end)

    def cached(self, slot: int) -> int:
        return self._cache.length[slot]
