"""Pools that grow: they keep what their slots hold, to a limit, and whatever fails."""

import itertools
import weakref
from functools import partial

import numpy as np
import pytest

from edgespec.errors import EngineError
from engines.base import Row
from engines.cache.pools import CacheTensor, GrowingPool
from engines.cache.slots import SlotCache
from engines.staged import Inputs, Sizes, Stage, StagedEngine
from tests.engines.cache.test_slots import holds, write

TENSORS = [CacheTensor("key", 2, 3, np.float32), CacheTensor("value", 1, 3, np.float16)]


class HostStore:
    """numpy's memory, as if it were scarce."""

    min_slots = 1

    def __init__(self, fails=lambda number: False):
        self.fails = fails
        self.asked = 0

    def zeros(self, shape, dtype):
        self.asked += 1
        if self.fails(self.asked):
            raise EngineError("the memory is full")
        return np.zeros(shape, dtype)

    def copy(self, target, index, source, place, start, end):
        target[index, :, start:end] = source[place, :, start:end]


def held_in(store, slots=40):
    return SlotCache(TENSORS, slots, (64, 256), partial(GrowingPool, store))


def sound(cache):
    """Every slot has its place in every array of its pool, and no other has it."""
    places = set()
    for slot in cache.length:
        if slot in cache._location:
            pool, index = cache.location(slot)
            assert pool.occupants[index] == slot
            assert len({len(array) for array in pool.arrays.values()}) == 1
            assert index < len(pool.arrays["key"])
            places.add((id(pool), index))
    assert len(places) == sum(len(pool.occupants) for pool in cache._pools.values())


def test_a_growing_pool_keeps_what_its_slots_hold_and_gives_back_what_is_free():
    held = held_in(HostStore())
    slots = [held.open() for _ in range(20)]
    for number, slot in enumerate(slots):
        write(held, slot, 30, number + 1)
        pool, _ = held.location(slot)
        assert len(pool.occupants) <= len(pool.arrays["key"]) <= number + 4 + number // 4
    held.reserve(slots[3], 200)
    assert all(holds(held, slot, 30, number + 1) for number, slot in enumerate(slots))
    assert held.location(slots[3])[0].capacity == 256
    before = pool.generation
    for slot in slots[4:]:
        held.close(slot)
    assert pool.generation > before, "addresses that are no longer true say so"
    assert len(pool.arrays["key"]) <= 10
    assert all(holds(held, slot, 30, number + 1) for number, slot in enumerate(slots[:4]))
    for slot in slots[:4]:
        held.close(slot)
    assert pool.bytes == 0 and not pool.arrays


def live(store, values):
    """Sessions come, grow, rest and go; whoever gets no memory does without. Returns the failures
    that were seen."""
    cache = held_in(store)
    kept, seen = {}, 0
    for value in values:
        slot = cache.open()
        try:
            write(cache, slot, 30, value)
            kept[slot] = value
            if value % 3 == 0:
                cache.reserve(slot, 100)
        except EngineError:
            seen += 1
            if slot not in kept:
                cache.close(slot)
        if value % 4 == 0 and kept:
            cache.close(leaver := next(iter(kept)))
            del kept[leaver]
        if value % 5 == 0 and kept:
            with cache.pinned():
                cache.rest(next(reversed(kept)))
        sound(cache)
        assert all(holds(cache, slot, 30, number) for slot, number in kept.items())
    for slot in kept:
        cache.close(slot)
        assert slot not in cache.length
    assert not cache.length and not any(pool.occupants for pool in cache._pools.values())
    return seen


LIVES = range(1, 33)


def allocations():
    store = HostStore()
    assert live(store, LIVES) == 0
    return store.asked


@pytest.mark.parametrize("lasting", [False, True], ids=["once", "from then on"])
def test_whichever_allocation_fails_nothing_is_lost(lasting):
    whole = allocations()
    assert whole > 20
    for wrong in range(1, whole + 1):
        live(HostStore(lambda n, at=wrong: n >= at if lasting else n == at), LIVES)
    assert live(HostStore(lambda n: n > 4), LIVES) > 1, "some do without"


def test_a_slot_that_finds_no_resting_place_stays_and_a_batch_that_ran_is_no_failure():
    store = HostStore()
    cache = held_in(store)
    slots = [cache.open() for _ in range(2)]
    for slot in slots:
        write(cache, slot, 30, slot + 1)
    before = cache.location(slots[0])
    store.fails = lambda number: True
    cache.rest(slots[0])
    assert cache.location(slots[0]) == before
    with cache.pinned():
        cache.rest(slots[0])
    assert cache.location(slots[0]) == before and holds(cache, slots[0], 30, 1)


def test_a_pool_that_cannot_shrink_gives_the_slot_back_all_the_same():
    store = HostStore()
    cache = held_in(store)
    slots = [cache.open() for _ in range(20)]
    for slot in slots:
        write(cache, slot, 30, slot + 1)
    store.fails = lambda number: True
    with cache.pinned():
        for slot in slots[10:]:
            cache.close(slot)
    for slot in slots[1:10]:
        cache.close(slot)
    assert list(cache.length) == slots[:1]
    assert holds(cache, slots[0], 30, 1)


class Block:
    """So many slots of counted memory, or a view of them."""

    def __init__(self, slots, memory=None):
        self.slots, self.memory = slots, memory

    def __len__(self):
        return self.slots

    def __getitem__(self, rows):
        return Block(len(range(self.slots)[rows]), self.memory)


class Memory:
    """Of a block."""


class CountingStore:
    min_slots = 1

    def __init__(self):
        self.now = self.most = 0

    def zeros(self, shape, dtype):
        size = int(np.prod(shape)) * np.dtype(dtype).itemsize
        self.now += size
        self.most = max(self.most, self.now)
        memory = Memory()
        weakref.finalize(memory, self._free, size)
        return Block(shape[0], memory)

    def _free(self, size):
        self.now -= size

    def copy(self, target, index, source, place, start, end):
        assert index < len(target) and place < len(source)


LAYERS = 16
BIG = [CacheTensor(f"{part}.{n}", 4, 64, np.float16) for n in range(LAYERS) for part in "kv"]


def reach(cache, slot, positions):
    cache.reserve(slot, positions)
    cache.length[slot] = positions


def crowd(cache, count, *, together):
    """Sessions grow from 200 to 1600 positions, all at once or one after the other."""
    slots = [cache.open() for _ in range(count)]
    steps = [(slot, size) for slot in slots for size in range(200, 1601, 50)]
    if together:
        steps.sort(key=lambda step: step[1])
    else:
        for slot in slots:
            reach(cache, slot, 200)
    for slot, size in steps:
        reach(cache, slot, size)
    return slots


@pytest.mark.parametrize("together", [True, False], ids=["together", "one by one"])
@pytest.mark.parametrize("count", [1, 4, 16, 48])
def test_what_is_allocated_keeps_to_the_limit(count, together):
    store = CountingStore()
    cache = SlotCache(BIG, count, make_pool=partial(GrowingPool, store))
    largest = cache.slot_bytes(1600)
    limit = count * largest
    cache.limit(limit)
    for _ in range(2):
        slots = crowd(cache, count, together=together)
        assert store.now <= limit
        for slot in slots:
            cache.rest(slot)
        for slot in slots[::2]:
            reach(cache, slot, 1610)
        for slot in slots:
            cache.close(slot)
        assert store.now == 0
    assert store.most <= 1.25 * limit + largest


def test_sessions_that_come_and_go_keep_to_a_limit_that_is_full():
    """As `cloud_runtime.memory.ledger` lends: the buckets of all slots stay within the limit."""
    store = CountingStore()
    cache = SlotCache(BIG, 64, make_pool=partial(GrowingPool, store))
    largest = cache.slot_bytes(2048)
    limit = 12 * largest
    cache.limit(limit)
    random = np.random.default_rng(1)
    sizes = {}
    for _ in range(3000):
        fresh = random.random() < 0.4 or not sizes
        slot = cache.open() if fresh else int(random.choice(list(sizes)))
        before = 0 if fresh else cache.length[slot]
        wanted = min(2000, before + int(random.integers(1, 400)))
        while sum(sizes.values()) - sizes.get(slot, 0) + cache.slot_bytes(wanted) > limit:
            other = next(one for one in sizes if one != slot)
            cache.close(other)
            del sizes[other]
        reach(cache, slot, wanted)
        sizes[slot] = cache.slot_bytes(wanted)
        if random.random() < 0.3:
            cache.rest(slot)
        assert store.now <= limit + largest
    assert store.most <= 1.25 * limit + largest
    for slot in sizes:
        cache.close(slot)
    assert store.now == 0


def test_memory_that_others_keep_as_spare_room_is_taken_before_a_slot_is_refused():
    cache = held_in(store := HostStore())
    write(cache, first := cache.open(), 30, 1)
    pool, _ = cache.location(first)
    assert len(pool.arrays["key"]) == 4
    failures = itertools.count()
    store.fails = lambda number: len(pool.arrays.get("key", ())) > 1 and next(failures) < 1
    write(cache, second := cache.open(), 100, 2)
    assert len(pool.arrays["key"]) == 1
    assert holds(cache, first, 30, 1) and holds(cache, second, 100, 2)


class Frame:
    def __init__(self, call):
        self.inputs = Inputs(call.count, call.width)

    def run(self, stage, select):
        assert not select.size
        return []


class Runner:
    stages = (Stage(1),)
    tensors = TENSORS

    def __init__(self):
        self.make_pool = partial(GrowingPool, HostStore())
        self.frames = weakref.WeakSet()

    def frame(self, call):
        self.frames.add(frame := Frame(call))
        return frame


def read(engine, *slots):
    for _ in engine.run([Row(slot, 0, [1, 2], 0) for slot in slots]):
        pass


def test_a_pool_moves_tensor_by_tensor():
    store = CountingStore()
    cache = SlotCache(BIG, 64, make_pool=partial(GrowingPool, store))
    for slot in [cache.open() for _ in range(64)]:
        reach(cache, slot, 200)
    pool, _ = cache.location(0)
    assert len(pool.arrays["k.0"]) == 64
    assert store.most <= store.now * (1 + 1 / len(BIG))


def test_frames_go_with_the_place_that_they_are_bound_to():
    runner = Runner()
    engine = StagedEngine(runner, Sizes(vocabulary=9, context=256, slots=20, min_tokens=1))
    slots = [engine.open() for _ in range(12)]
    for slot in slots:
        read(engine, slot)
    pool, _ = engine._cache.location(slots[0])
    assert pool.generation == 3 and len(runner.frames) == 4
    read(engine, slots[0])
    read(engine, *slots[:3])
    assert len(runner.frames) == 6, "those of a pool that stays are kept"
