"""The KV cache of a back end: fixed slots, written in place.

Slots of one capacity live in one pool (`engines/cache/pools.py`), so that a run of neighbours is a
batch without copying. A slot is copied only when it outgrows its bucket, when it is laid to rest
among others that do not run, or to close the gap that another one left, which keeps a pool's slots
neighbours.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress

from edgespec.errors import EngineError
from engines.cache.pools import BUCKETS, CacheTensor, HostPool, MakePool, Pool, bucket


class SlotCache:
    """Which slot lies where, and how much of it is filled."""

    def __init__(
        self,
        tensors: Sequence[CacheTensor],
        slots: int,
        capacities: Sequence[int] = BUCKETS,
        make_pool: MakePool = HostPool,
    ) -> None:
        self.slots = slots
        self._capacities = capacities
        self._make_pool = make_pool
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
        capacity. Before the first is reserved, since a pool is mapped once.

        Pools that grow keep to it together, spare room included, as long as the slots do. Beyond it
        are the slot that moves, until it has left its old place, and one tensor of the pool that
        changes its size."""
        assert not self._pools
        self._memory = memory
        self.slots = max(1, memory // self.slot_bytes(1))

    def slot_bytes(self, positions: int) -> int:
        """Bytes of a slot that holds so many positions."""
        return self._bucket(positions) * self._position_bytes

    def open(self) -> int:
        if len(self.length) - len(self._closing) >= self.slots:
            raise EngineError(f"all {self.slots} slots are taken")
        slot = next(number for number in itertools.count() if number not in self.length)
        self.length[slot] = 0
        return slot

    def close(self, slot: int) -> None:
        """Gives a slot back, at once or, while the cache is held still, as soon as it is not.
        Needs no memory."""
        if self._still:
            self._closing.append(slot)
            return
        del self.length[slot]
        if slot in self._place:
            self._vacate(*self._place.pop(slot))

    def rest(self, slot: int) -> None:
        """Moves a slot out of the way of those that run, to the smallest bucket that holds it, at
        once or as soon as may be. Where there is no memory for that it stays where it is."""
        if self._still:
            self._resting.append(slot)
        elif slot in self._place:
            with suppress(EngineError):
                self._move(slot, self._pool(self._bucket(self.length[slot]), resting=True))

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

    def generations(self) -> dict[int, int]:
        """Of the pools of slots that run, by capacity."""
        return {size: pool.generation for (size, rest), pool in self._pools.items() if not rest}

    def place(self, slot: int) -> tuple[Pool, int]:
        """The pool that holds a slot, and its index there. The slot must have been reserved."""
        return self._place[slot]

    def reserve(self, slot: int, positions: int) -> None:
        """Makes room for `positions` among the slots that run, moving what is cached if need be."""
        capacity = self._bucket(positions)
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
            self._pools[key] = self._make_pool(self._tensors, capacity, slots)
        return self._pools[key]

    def _move(self, slot: int, pool: Pool) -> None:
        """Puts a slot, with what it holds, into a pool. Raises `EngineError` where there is no room
        for it; it is then where it was."""
        before = self._place.get(slot)
        if before is not None and before[0] is pool:
            return
        if pool.grows:
            self._grow(pool)
        index = pool.take(slot)
        if before is not None:
            try:
                self._copy(before, (pool, index), self.length[slot])
            except EngineError:
                pool.occupants.pop()
                raise
        self._place[slot] = (pool, index)
        if before is not None:
            self._vacate(*before)

    def _grow(self, pool: Pool) -> None:
        """Room for one slot more; the others' spare room goes first where there is not enough."""
        others = [other for other in self._pools.values() if other is not pool]
        others.sort(key=lambda other: len(other.occupants) * other.slot_bytes - other.bytes)
        if self._memory:
            for other in others:
                if self._free() < pool.slot_bytes:
                    other.trim()
        try:
            pool.grow(self._free() if self._memory else None)
        except EngineError:
            for other in others:
                other.trim()
            pool.grow(0)

    def _free(self) -> int:
        return self._memory - sum(pool.bytes for pool in self._pools.values())

    def _vacate(self, pool: Pool, index: int) -> None:
        """A slot has left its pool; the pool's last one moves into the gap."""
        last = pool.occupants.pop()
        end = len(pool.occupants)
        if end != index:
            pool.occupants[index] = last
            self._place[last] = (pool, index)
            held, self.length[last] = self.length[last], 0  # which is true if the copy fails
            self._copy((pool, end), (pool, index), held)
            self.length[last] = held
        pool.give_back(end)

    def _copy(
        self, source: tuple[Pool, int], target: tuple[Pool, int], end: int, start: int = 0
    ) -> None:
        target[0].copy(target[1], *source, start, end)

    def _bucket(self, positions: int) -> int:
        return bucket(positions, self._capacities)


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
