"""Slots stay neighbours, keep what they hold, and copy only when they must."""

import numpy as np
import pytest

from edgespec.errors import EngineError
from engines.base import Row
from engines.batches import plan, width_class
from engines.slots import CacheTensor, SlotCache, bucket


def cache(slots=4):
    return SlotCache(
        [CacheTensor("key", 2, 3, np.float32), CacheTensor("value", 1, 3, np.float16)], slots
    )


def write(store, slot, length, value):
    store.reserve(slot, length)
    pool, index = store.place(slot)
    for array in pool.arrays.values():
        array[index, :, :length] = value
    store.length[slot] = length


def holds(store, slot, length, value):
    pool, index = store.place(slot)
    return store.length[slot] == length and all(
        (array[index, :, :length] == value).all() for array in pool.arrays.values()
    )


@pytest.mark.parametrize(
    ("positions", "capacity"),
    [(1, 256), (256, 256), (257, 512), (2048, 2048), (2049, 4096), (4097, 6144)],
)
def test_buckets(positions, capacity):
    assert bucket(positions) == capacity


def test_growing_and_leaving_move_what_is_cached():
    store = cache()
    slots = [store.open() for _ in range(4)]
    for number, slot in enumerate(slots):
        write(store, slot, 100 + number, number + 1)
    store.reserve(slots[0], 300)
    assert store.place(slots[0])[0].capacity == 512
    assert all(holds(store, slot, 100 + number, number + 1) for number, slot in enumerate(slots))
    assert sorted(store.place(slot)[1] for slot in slots[1:]) == [0, 1, 2]
    store.close(slots[3])
    store.close(slots[1])
    assert store.place(slots[2])[1] == 0
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
    with store.still():
        store.close(first)
        assert store.place(second)[1] == 1
        third = store.open()
        with pytest.raises(EngineError, match="all 2 slots"):
            store.open()
    assert store.place(second)[1] == 0
    assert holds(store, second, 20, 2)
    write(store, third, 5, 3)
    assert holds(store, second, 20, 2)


def test_fresh_memory_is_zero():
    store = cache()
    slot = store.open()
    store.reserve(slot, 1)
    pool, index = store.place(slot)
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
    assert shapes(plan(rows, store, 2)) == [(256, 0, (1, 2, 0), 5)]
    assert shapes(plan([Row(b, 10, [1])], store, 2)) == [(256, 1, (0,), 2)]


def test_few_idle_slots_are_carried_along_and_many_split_the_batch():
    store, slots = filled(5)
    rows = [Row(slots[0], 10, [1, 2]), Row(slots[2], 10, [1, 2])]
    assert shapes(plan(rows, store, 2)) == [(256, 0, (0, None, 1), 2)]
    rows = [Row(slots[0], 10, [1, 2]), Row(slots[4], 10, [1, 2])]
    assert shapes(plan(rows, store, 2)) == [(256, 0, (0,), 2), (256, 4, (1,), 2)]


def test_an_idle_slot_without_room_for_pads_is_not_carried_along():
    store, slots = filled(3)
    write(store, slots[1], 250, 1)
    rows = [Row(slots[0], 10, [1, 2]), Row(slots[2], 10, [1, 2])]
    assert shapes(plan(rows, store, 2)) == [(256, 0, (0,), 2), (256, 2, (1,), 2)]


def test_prompt_chunks_run_apart_from_short_rows():
    store, (a, b) = filled(2)
    rows = [Row(a, 10, [1] * 60, 0), Row(b, 10, [1, 2])]
    assert shapes(plan(rows, store, 2)) == [(256, 1, (1,), 2), (256, 0, (0,), 60)]
