"""The KV cache of a back end: fixed slots, written in place.

Slots of one capacity are in one pool (`engines/cache/pools.py`), so that neighbouring slots form a
batch without a copy. A slot is copied in three cases: it outgrows its capacity, it moves to the
pool of resting slots, or it fills the gap that another slot left in its pool.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, suppress

from edgespec.errors import EngineError
from engines.cache.pools import CAPACITIES, CacheTensor, HostPool, MakePool, Pool, capacity_for


def check_copy(lengths: Mapping[int, int], source: int, target: int, start: int, end: int) -> None:
    """Raises `ValueError` if `[start, end)` cannot be copied between slots with these lengths."""
    if not (0 <= start <= lengths[target] and start <= end <= lengths[source]):
        raise ValueError(
            f"[{start}, {end}) cannot be copied from a slot of {lengths[source]} positions "
            f"to one of {lengths[target]}"
        )


def open_slot(lengths: dict[int, int], slots: int, closing: int = 0) -> int:
    """Adds an empty slot with the lowest free number to `lengths`, and returns it. `closing`:
    number of slots that are about to leave.

    Raises `EngineError` when all slots are taken.
    """
    if len(lengths) - closing >= slots:
        raise EngineError(f"all {slots} slots are taken")
    slot = next(number for number in itertools.count() if number not in lengths)
    lengths[slot] = 0
    return slot


class SlotCache:
    """Location and cached length of every slot."""

    def __init__(
        self,
        tensors: Sequence[CacheTensor],
        slots: int,
        capacities: Sequence[int] = CAPACITIES,
        make_pool: MakePool = HostPool,
    ) -> None:
        self.slots = slots
        self._capacities = capacities
        self._make_pool = make_pool
        self.length: dict[int, int] = {}
        """Cached positions of each open slot."""
        self._tensors = tensors
        self._position_bytes = sum(tensor.bytes(1) for tensor in tensors)
        self._memory_bytes = 0
        """Limit of all pools together; 0 for no limit."""
        self._pinned = False
        self._closing: list[int] = []
        """Slots to close when the cache is no longer pinned."""
        self._resting: list[int] = []
        """Slots to move to rest when the cache is no longer pinned."""
        self._pools: dict[tuple[int, bool], Pool] = {}
        """Pools by capacity, and whether they hold resting slots."""
        self._location: dict[int, tuple[Pool, int]] = {}

    def limit(self, memory_bytes: int) -> None:
        """Limits the slots to those that fit into `memory_bytes`, at least one of each capacity.

        Call it before the first slot is reserved. Growing pools stay below the limit together, with
        their spare capacity. Two things may exceed it for a short time: the copy of a slot that
        moves, and one tensor of a pool that is resized.
        """
        assert not self._pools
        self._memory_bytes = memory_bytes
        self.slots = max(1, memory_bytes // self.slot_bytes(1))

    def slot_bytes(self, positions: int) -> int:
        """Returns the bytes of a slot that holds `positions` positions."""
        return self._capacity(positions) * self._position_bytes

    def open(self) -> int:
        """Returns a new, empty slot. Raises `EngineError` when all slots are taken."""
        return open_slot(self.length, self.slots, len(self._closing))

    def close(self, slot: int) -> None:
        """Frees a slot: now, or after the current `pinned` block. Needs no memory."""
        if self._pinned:
            self._closing.append(slot)
            return
        del self.length[slot]
        if slot in self._location:
            self._vacate(*self._location.pop(slot))

    def rest(self, slot: int) -> None:
        """Moves a slot to the pool of resting slots, with the smallest capacity that holds it.

        Moves it now, or after the current `pinned` block. Leaves it in place if the memory is full.
        """
        if self._pinned:
            self._resting.append(slot)
        elif slot in self._location:
            with suppress(EngineError):
                self._move(slot, self._pool(self._capacity(self.length[slot]), resting=True))

    def pinned(self) -> AbstractContextManager[None]:
        """Delays moves of slots until the block ends, because a running batch uses locations."""
        return _Pinned(self)

    def pin(self) -> None:
        self._pinned = True

    def unpin(self) -> None:
        self._pinned = False
        while self._closing:
            self.close(self._closing.pop())
        while self._resting:
            slot = self._resting.pop()
            if slot in self.length:
                self.rest(slot)

    def generations(self) -> dict[int, int]:
        """Returns the generation of each pool of running slots, by capacity."""
        return {size: pool.generation for (size, rest), pool in self._pools.items() if not rest}

    def location(self, slot: int) -> tuple[Pool, int]:
        """Returns the pool that holds a slot, and its index there. Call `reserve` before."""
        return self._location[slot]

    def reserve(self, slot: int, positions: int) -> None:
        """Gives a slot capacity for `positions` in a pool of running slots, with a copy if needed.

        Raises `EngineError` if the memory is full.
        """
        capacity = self._capacity(positions)
        if slot in self._location:
            pool = self._location[slot][0]
            capacity = max(capacity, pool.capacity)
            if pool is self._pools.get((capacity, False)):
                return
        self._move(slot, self._pool(capacity, resting=False))

    def copy(self, source: int, target: int, start: int, end: int) -> None:
        """Copies positions `[start, end)` between slots; `target` then holds `end` positions.

        Raises `ValueError` if `target` holds fewer than `start` or `source` fewer than `end`.
        """
        check_copy(self.length, source, target, start, end)
        if source != target and start < end:
            self.length[target] = start
            self.reserve(target, end)
            self._copy(self._location[source], self._location[target], end, start)
        self.length[target] = end

    def _pool(self, capacity: int, *, resting: bool) -> Pool:
        key = (capacity, resting)
        if key not in self._pools:
            slots = self.slots
            if self._memory_bytes:
                slots = max(1, min(slots, self._memory_bytes // self.slot_bytes(capacity)))
            self._pools[key] = self._make_pool(self._tensors, capacity, slots)
        return self._pools[key]

    def _move(self, slot: int, pool: Pool) -> None:
        """Moves a slot and its content into a pool.

        Raises `EngineError` if the memory is full; the slot then stays at its old location.
        """
        before = self._location.get(slot)
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
        self._location[slot] = (pool, index)
        if before is not None:
            self._vacate(*before)

    def _grow(self, pool: Pool) -> None:
        """Makes a pool one slot larger, after trimming other pools' spare capacity if necessary."""
        others = [other for other in self._pools.values() if other is not pool]
        others.sort(key=lambda other: len(other.occupants) * other.slot_bytes - other.bytes)
        if self._memory_bytes:
            for other in others:
                if self._free_bytes() < pool.slot_bytes:
                    other.trim()
        try:
            pool.grow(self._free_bytes() if self._memory_bytes else None)
        except EngineError:
            for other in others:
                other.trim()
            pool.grow(0)

    def _free_bytes(self) -> int:
        return self._memory_bytes - sum(pool.bytes for pool in self._pools.values())

    def _vacate(self, pool: Pool, index: int) -> None:
        """Closes the gap at `index`: the pool's last slot moves there."""
        last = pool.occupants.pop()
        end = len(pool.occupants)
        if end != index:
            pool.occupants[index] = last
            self._location[last] = (pool, index)
            held, self.length[last] = self.length[last], 0  # the slot is empty if the copy fails
            self._copy((pool, end), (pool, index), held)
            self.length[last] = held
        pool.give_back(end)

    def _copy(
        self, source: tuple[Pool, int], target: tuple[Pool, int], end: int, start: int = 0
    ) -> None:
        target[0].copy(target[1], *source, start, end)

    def _capacity(self, positions: int) -> int:
        return capacity_for(positions, self._capacities)


class _Pinned:
    """The block of `SlotCache.pinned`. `contextlib.contextmanager` would cost 15 µs a step."""

    def __init__(self, cache: SlotCache) -> None:
        self._cache = cache

    def __enter__(self) -> None:
        self._cache.pin()

    def __exit__(self, *error: object) -> None:
        self._cache.unpin()


class SlotEngine:
    """The slot methods of an `Engine`, over a `SlotCache`."""

    def __init__(self, cache: SlotCache) -> None:
        self._cache = cache

    @property
    def slots(self) -> int:
        return self._cache.slots

    def limit(self, memory_bytes: int) -> None:
        """Limits the memory of all slots. Call it before the first row."""
        self._cache.limit(memory_bytes)

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
