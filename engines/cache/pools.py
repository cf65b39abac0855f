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
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from edgespec.errors import EngineError

BUCKETS = (256, 512, 1024, 2048)
"""Positions; beyond the last, multiples of it."""
STEP_SLOTS = 4
STEP_BYTES = 32 << 20
"""A growing pool takes so many slots more at once, and of large ones no more than so many bytes; or
a quarter of what it has, since what it has is copied."""


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

    @property
    def bytes(self) -> int:
        """That are taken from everybody else, for slots or as spare room."""
        return 0

    @property
    def slot_bytes(self) -> int:
        """That the pool takes for a slot more, if it must take them from everybody else."""
        return 0

    @property
    def grows(self) -> bool:
        """Whether the next slot takes more `bytes`."""
        return False

    def grow(self, free: int | None = None) -> None:
        """Makes room for the next slot and some spare room, of which no more than fits into `free`
        bytes. Raises `EngineError` where there is no memory; nothing is changed then."""

    def take(self, slot: int) -> int:
        """The index of a slot that comes, for which there is room. Raises `EngineError` when all
        are taken."""
        if len(self.occupants) == self._slots:
            raise EngineError(f"all {self._slots} slots of {self.capacity} positions are taken")
        self.occupants.append(slot)
        return len(self.occupants) - 1

    def give_back(self, index: int) -> None:
        """The memory of an index that nobody occupies, the last one, may be used otherwise."""

    def trim(self) -> None:
        """Gives back what can be given back of the spare room."""

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

    @property
    def least(self) -> int:
        """Slots that an array has at least, wanted or not."""

    def zeros(self, shape: tuple[int, ...], dtype: npt.DTypeLike) -> Any:
        """Raises `EngineError` where there is no room."""

    def copy(self, target: Any, index: int, source: Any, place: int, start: int, end: int) -> None:
        """`target[index, :, start:end] = source[place, :, start:end]`; the two do not overlap."""


class GrowingPool(Pool):
    """Arrays that are replaced, one after the other, when slots come or most of them have left.

    So there is one tensor more than the pool has, for a while, and not a second pool. Where that
    fails half-way some arrays are longer than others; what is seen of them is equally long.
    """

    def __init__(
        self, store: Store, tensors: Sequence[CacheTensor], capacity: int, slots: int
    ) -> None:
        super().__init__(capacity, slots)
        self._store, self._tensors = store, tensors
        self._size = 0
        self._whole: dict[str, Any] = {}
        """What `arrays` are views of."""

    @property
    def bytes(self) -> int:
        whole = self._whole
        return sum(
            len(whole[tensor.name]) * tensor.bytes(self.capacity)
            for tensor in self._tensors
            if tensor.name in whole
        )

    @property
    def slot_bytes(self) -> int:
        return sum(tensor.bytes(self.capacity) for tensor in self._tensors)

    @property
    def grows(self) -> bool:
        return self._size <= len(self.occupants) < self._slots

    def grow(self, free: int | None = None) -> None:
        taken = len(self.occupants)
        step = self._step(taken)
        if free is not None:
            step = max(1, min(step, free // self.slot_bytes))
        try:
            self._resize(min(self._slots, taken + step))
        except EngineError:
            self._try(self._size)
            raise

    def give_back(self, index: int) -> None:
        if index == 0 or index < self._size // 2:
            self._try(index + self._step(index) if index else 0)

    def trim(self) -> None:
        self._try(len(self.occupants))

    def copy(self, index: int, source: Pool, place: int, start: int, end: int) -> None:
        for name, array in self.arrays.items():
            self._store.copy(array, index, source.arrays[name], place, start, end)

    def _step(self, size: int) -> int:
        return max(1, min(STEP_SLOTS, STEP_BYTES // self.slot_bytes), size // 4)

    def _try(self, size: int) -> None:
        """Shrinks, or where there is no memory for that keeps what there is."""
        with suppress(EngineError):
            self._resize(min(self._size, size))

    def _resize(self, size: int) -> None:
        """The slots that stay keep their index. Raises `EngineError` where there is no room for a
        tensor beside those that there are; what is there then still holds every occupant."""
        size = max(size, self._store.least) if size else 0
        if all(len(self._whole.get(tensor.name, ())) == size for tensor in self._tensors):
            return
        self.generation += 1
        self.arrays = {}  # views may keep alive what is replaced
        try:
            if size:
                for tensor in self._tensors:
                    self._replace(tensor, size)
            else:
                self._whole = {}
        finally:
            self._see()

    def _replace(self, tensor: CacheTensor, size: int) -> None:
        before = self._whole.get(tensor.name, ())
        if len(before) == size:
            return
        array = self._store.zeros(
            (size, tensor.heads, self.capacity, tensor.head_dim), tensor.dtype
        )
        for index in range(min(len(self.occupants), self._size, size)):
            self._store.copy(array, index, before, index, 0, self.capacity)
        self._whole[tensor.name] = array

    def _see(self) -> None:
        """The slots that all arrays have are those that there are."""
        lengths = [len(self._whole.get(tensor.name, ())) for tensor in self._tensors]
        self._size = min(lengths, default=0)
        self.arrays = {name: array[: self._size] for name, array in self._whole.items()}
