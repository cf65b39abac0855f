"""Slots stay neighbours, keep what they hold, and copy only when they must."""

import mmap
from pathlib import Path

import numpy as np
import pytest

from edgespec.errors import EngineError
from engines.base import Row
from engines.cache.pools import CacheTensor, capacity_for
from engines.cache.slots import SlotCache
from engines.calls import plan_calls, width_class


def cache(slots=4):
    return SlotCache(
        [CacheTensor("key", 2, 3, np.float32), CacheTensor("value", 1, 3, np.float16)], slots
    )


def write(store, slot, length, value):
    store.reserve(slot, length)
    pool, index = store.location(slot)
    for array in pool.arrays.values():
        array[index, :, :length] = value
    store.length[slot] = length


def holds(store, slot, length, value):
    pool, index = store.location(slot)
    return store.length[slot] == length and all(
        (array[index, :, :length] == value).all() for array in pool.arrays.values()
    )


@pytest.mark.parametrize(
    ("positions", "capacity"),
    [(1, 256), (256, 256), (257, 512), (2048, 2048), (2049, 4096), (4097, 6144)],
)
def test_buckets(positions, capacity):
    assert capacity_for(positions) == capacity


def test_growing_and_leaving_move_what_is_cached():
    store = cache()
    slots = [store.open() for _ in range(4)]
    for number, slot in enumerate(slots):
        write(store, slot, 100 + number, number + 1)
    store.reserve(slots[0], 300)
    assert store.location(slots[0])[0].capacity == 512
    assert all(holds(store, slot, 100 + number, number + 1) for number, slot in enumerate(slots))
    assert sorted(store.location(slot)[1] for slot in slots[1:]) == [0, 1, 2]
    store.close(slots[3])
    store.close(slots[1])
    assert store.location(slots[2])[1] == 0
    assert holds(store, slots[2], 102, 3)
    assert holds(store, slots[0], 100, 1)


def test_a_closed_slot_comes_back_empty_and_too_many_are_refused():
    store = cache(2)
    first, _ = store.open(), store.open()
    write(store, first, 10, 1)
    with pytest.raises(EngineError, match="all 2 slots"):
        store.open()
    store.close(first)
    assert store.length[store.open()] == 0


def test_slots_closed_during_a_batch_move_nobody_until_it_is_over():
    store = cache(2)
    first, second = store.open(), store.open()
    write(store, first, 10, 1)
    write(store, second, 20, 2)
    with store.pinned():
        store.close(first)
        assert store.location(second)[1] == 1
        third = store.open()
        with pytest.raises(EngineError, match="all 2 slots"):
            store.open()
    assert store.location(second)[1] == 0
    assert holds(store, second, 20, 2)
    write(store, third, 5, 3)
    assert holds(store, second, 20, 2)


def test_fresh_memory_is_zero():
    store = cache()
    slot = store.open()
    store.reserve(slot, 1)
    pool, index = store.location(slot)
    assert all(not array[index].any() for array in pool.arrays.values())


@pytest.mark.parametrize(("tokens", "width"), [(1, 16), (16, 16), (17, 32), (64, 64), (65, 128)])
def test_width_classes(tokens, width):
    assert width_class(tokens) == width


def filled(count, length=10, slots=8):
    store = cache(slots)
    opened = [store.open() for _ in range(count)]
    for slot in opened:
        write(store, slot, length, 1)
    return store, opened


def shapes(calls):
    return [(call.pool.capacity, call.first, call.members, call.width) for call in calls]


def test_short_rows_share_a_call_and_single_tokens_are_padded():
    store, (a, b, c) = filled(3)
    rows = [Row(c, 10, [1] * 5), Row(a, 10, [1]), Row(b, 10, [1] * 3)]
    assert shapes(plan_calls(rows, store, 2)) == [(256, 0, (1, 2, 0), 5)]
    assert shapes(plan_calls([Row(b, 10, [1])], store, 2)) == [(256, 1, (0,), 2)]


def test_few_idle_slots_are_carried_along_and_many_split_the_batch():
    store, slots = filled(5)
    rows = [Row(slots[0], 10, [1, 2]), Row(slots[2], 10, [1, 2])]
    assert shapes(plan_calls(rows, store, 2)) == [(256, 0, (0, None, 1), 2)]
    rows = [Row(slots[0], 10, [1, 2]), Row(slots[4], 10, [1, 2])]
    assert shapes(plan_calls(rows, store, 2)) == [(256, 0, (0,), 2), (256, 4, (1,), 2)]


def test_an_idle_slot_without_room_for_pads_is_not_carried_along():
    store, slots = filled(3)
    write(store, slots[1], 250, 1)
    rows = [Row(slots[0], 10, [1, 2]), Row(slots[2], 10, [1, 2])]
    assert shapes(plan_calls(rows, store, 2)) == [(256, 0, (0,), 2), (256, 2, (1,), 2)]


def test_prompt_chunks_run_apart_from_short_rows():
    store, (a, b) = filled(2)
    rows = [Row(a, 10, [1] * 60, 0), Row(b, 10, [1, 2])]
    assert shapes(plan_calls(rows, store, 2)) == [(256, 1, (1,), 2), (256, 0, (0,), 60)]


def numbered(store, slot, length, offset):
    store.reserve(slot, length)
    pool, index = store.location(slot)
    for array in pool.arrays.values():
        array[index, :, :length] = (offset + np.arange(length) % 100)[:, None]
    store.length[slot] = length


@pytest.mark.parametrize("length", [40, 300], ids=["one pool", "two pools"])
def test_a_branch_is_copied_where_it_differs(length):
    store = cache()
    source, target, other = (store.open() for _ in range(3))
    numbered(store, source, length, 1000)
    numbered(store, target, 30, 200)
    numbered(store, other, 7, 600)
    store.copy(source, target, 20, length - 5)
    assert store.length == {source: length, target: length - 5, other: 7}
    for slot, bounds in ((source, [(0, length, 1000)]), (other, [(0, 7, 600)]),
                         (target, [(0, 20, 200), (20, length - 5, 1000)])):  # fmt: skip
        pool, index = store.location(slot)
        for array in pool.arrays.values():
            for start, end, offset in bounds:
                expected = offset + np.arange(start, end) % 100
                assert (array[index, :, start:end] == expected[:, None]).all()


def test_a_branch_may_begin_in_an_empty_slot_and_may_be_nothing():
    store = cache()
    source, target = store.open(), store.open()
    write(store, source, 10, 3)
    store.copy(source, target, 0, 10)
    assert holds(store, target, 10, 3)
    store.copy(source, target, 4, 4)
    assert store.length[target] == 4
    store.copy(source, source, 6, 8)
    assert holds(store, source, 8, 3)
    store.copy(source, store.open(), 0, 0)


@pytest.mark.parametrize(("start", "end"), [(6, 8), (0, 11), (3, 2), (-1, 2)])
def test_a_copy_of_what_is_not_there_is_refused(start, end):
    store = cache()
    source, target = store.open(), store.open()
    write(store, source, 10, 1)
    write(store, target, 5, 2)
    with pytest.raises(ValueError, match="cannot be copied"):
        store.copy(source, target, start, end)
    assert holds(store, target, 5, 2)


def test_a_row_without_room_for_pads_runs_at_its_own_width():
    """It would otherwise grow before it must, and count as more than it holds."""
    store, (a, b) = filled(2)
    write(store, a, 256 - 5, 1)
    rows = [Row(a, 251, [1] * 5), Row(b, 10, [1] * 7)]
    assert shapes(plan_calls(rows, store, 2)) == [(256, 0, (0,), 5), (256, 1, (1,), 7)]
    assert shapes(plan_calls([Row(a, 251, [1] * 6)], store, 2)) == [(512, 0, (0,), 6)]


def test_slots_at_rest_make_way_and_come_back():
    store = cache()
    slots = [store.open() for _ in range(4)]
    for number, slot in enumerate(slots):
        write(store, slot, 300, number + 1)
    store.length[slots[1]] = 40
    store.rest(slots[1])
    store.rest(slots[0])
    assert sorted(store.location(slot)[1] for slot in slots[2:]) == [0, 1]
    assert store.location(slots[1])[0].capacity == 256, "what it holds fits there"
    assert holds(store, slots[0], 300, 1) and holds(store, slots[1], 40, 2)
    store.reserve(slots[0], 10)
    assert store.location(slots[0])[0] is store.location(slots[2])[0]
    store.copy(slots[3], slots[1], 0, 20)
    assert holds(store, slots[1], 20, 4)
    assert all(holds(store, slots[n], 300, n + 1) for n in (0, 2, 3))


def test_a_slot_laid_to_rest_during_a_batch_moves_when_it_is_over():
    store = cache()
    first, second, third = (store.open() for _ in range(3))
    for number, slot in enumerate((first, second, third)):
        write(store, slot, 10, number + 1)
    pool, _ = store.location(first)
    with store.pinned():
        store.rest(first)
        store.rest(second)
        store.close(second)
        assert store.location(first) == (pool, 0)
    assert store.location(third) == (pool, 0)
    assert store.location(first)[0] is not pool
    assert holds(store, first, 10, 1) and holds(store, third, 10, 3)
    assert second not in store.length


def test_addresses_stay_when_others_come_and_grow():
    store, slots = filled(2)
    before = {name: array.ctypes.data for name, array in store.location(slots[0])[0].arrays.items()}
    for _ in range(6):
        write(store, store.open(), 300, 1)
        write(store, slots[1], 300, 1)
    after = {name: array.ctypes.data for name, array in store.location(slots[0])[0].arrays.items()}
    assert before == after


def test_a_bound_in_bytes_says_how_many_slots_there_are():
    store = cache()
    assert store.slot_bytes(1) == store.slot_bytes(256) == 256 * (2 * 3 * 4 + 3 * 2)
    assert store.slot_bytes(257) == 2 * store.slot_bytes(1)
    store.limit(5 * store.slot_bytes(1))
    slots = [store.open() for _ in range(5)]
    with pytest.raises(EngineError, match="all 5 slots"):
        store.open()
    for slot in slots[:2]:
        store.reserve(slot, 300)
    with pytest.raises(EngineError, match="all 2 slots of 512 positions"):
        store.reserve(slots[2], 300)


def resident():
    """Bytes of this process that are in memory."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * mmap.PAGESIZE


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="needs Linux")
def test_memory_is_what_was_written_and_comes_back():
    tensors = [CacheTensor(f"cache_{n}", 4, 64, np.float32) for n in range(20)]
    store = SlotCache(tensors, 4096)
    size = store.slot_bytes(256)
    before = resident()
    slots = [store.open() for _ in range(8)]
    for slot in slots:
        store.reserve(slot, 256)
    assert resident() - before < size, "addresses cost nothing"
    for slot in slots:
        write(store, slot, 256, 1)
    assert 7 * size < resident() - before < 9 * size
    for slot in slots[:6]:
        store.close(slot)
    assert resident() - before < 3.5 * size
    again = store.open()
    store.reserve(again, 1)
    pool, index = store.location(again)
    assert not any(array[index].any() for array in pool.arrays.values())
    store.rest(slots[6])
    for slot in (again, *slots[6:]):
        store.close(slot)
    assert resident() - before < size
