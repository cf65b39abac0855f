"""The KV cache of a back end whose memory is numpy's: fixed slots, written in place.

Slots of one capacity live in one pool, an array `[slots, kv_heads, capacity, head_dim]` for each
cache tensor, so that a run of neighbours is a batch without copying. Capacities are buckets,
because ONNX Runtime's attention costs time for the whole capacity (one token over 256 cached
positions: 161 µs at 2048, 40 µs at 512). A slot is copied only when it outgrows its bucket, or to
close the gap that another one left, which keeps a pool's slots neighbours.

Fresh memory is zeroed: a masked position weighs 0, and 0 times the NaN of stray bits would be NaN.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
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


@dataclass
class Pool:
    capacity: int
    arrays: dict[str, npt.NDArray[Any]] = field(default_factory=dict)
    occupants: list[int] = field(default_factory=list)
    """Slot ids, by index in the arrays."""
    generation: int = 0
    """Rises when the arrays are replaced, which makes addresses into them stale."""

    @property
    def size(self) -> int:
        return len(next(iter(self.arrays.values()))) if self.arrays else 0


class SlotCache:
    """Which slot lies where, and how much of it is filled."""

    def __init__(self, tensors: Sequence[CacheTensor], slots: int) -> None:
        self._tensors = tensors
        self._slots = slots
        self._still = False
        self._closing: list[int] = []
        self.pools: dict[int, Pool] = {}
        self.length: dict[int, int] = {}
        self._place: dict[int, tuple[Pool, int]] = {}

    def open(self) -> int:
        if len(self.length) - len(self._closing) >= self._slots:
            raise EngineError(f"all {self._slots} slots are taken")
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

    def place(self, slot: int) -> tuple[Pool, int]:
        """The pool that holds a slot, and its index there. The slot must have been reserved."""
        return self._place[slot]

    def reserve(self, slot: int, positions: int) -> None:
        """Makes room for `positions`, moving what is cached to a larger bucket if need be."""
        capacity = bucket(positions)
        if slot in self._place and self._place[slot][0].capacity >= capacity:
            return
        pool = self.pools.setdefault(capacity, Pool(capacity))
        index = len(pool.occupants)
        if index == pool.size:
            self._extend(pool)
        if slot in self._place:
            self._copy(self._place[slot], (pool, index), self.length[slot])
            self._vacate(slot)
        pool.occupants.append(slot)
        self._place[slot] = (pool, index)

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

    def _vacate(self, slot: int) -> None:
        """Takes the slot out of its pool; the pool's last one moves into the gap."""
        pool, index = self._place.pop(slot)
        last = pool.occupants.pop()
        if not pool.occupants and pool.capacity > BUCKETS[0]:
            pool.arrays = {}  # few sessions grow that large; the next one allocates again
            pool.generation += 1
            return
        if last != slot:
            self._copy((pool, len(pool.occupants)), (pool, index), self.length[last])
            pool.occupants[index] = last
            self._place[last] = (pool, index)

    def _extend(self, pool: Pool) -> None:
        size = min(max(1, 2 * pool.size), self._slots)
        grown: dict[str, npt.NDArray[Any]] = {}
        try:
            for tensor in self._tensors:
                shape = (size, tensor.heads, pool.capacity, tensor.head_dim)
                grown[tensor.name] = np.zeros(shape, tensor.dtype)
                if pool.size:
                    grown[tensor.name][: pool.size] = pool.arrays[tensor.name]
        except MemoryError as error:
            raise EngineError(
                f"there is no memory for {size} sessions of {pool.capacity} positions"
            ) from error
        pool.arrays = grown
        pool.generation += 1

    def _copy(
        self, source: tuple[Pool, int], target: tuple[Pool, int], end: int, start: int = 0
    ) -> None:
        for tensor in self._tensors:
            (a, i), (b, j) = source, target
            b.arrays[tensor.name][j, :, start:end] = a.arrays[tensor.name][i, :, start:end]


class SlotEngine:
    """The part of an `Engine` that is about slots, for back ends over a `SlotCache`."""

    def __init__(self, cache: SlotCache) -> None:
        self._cache = cache

    def open(self) -> int:
        return self._cache.open()

    def close(self, slot: int) -> None:
        self._cache.close(slot)

    def truncate(self, slot: int, length: int) -> None:
        self._cache.length[slot] = min(length, self._cache.length[slot])

    def copy(self, source: int, target: int, start: int, end: int) -> None:
        self._cache.copy(source, target, start, end)

    def cached(self, slot: int) -> int:
        return self._cache.length[slot]
