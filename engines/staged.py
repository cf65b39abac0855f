"""The part of an engine that all back ends share, over a runner.

The engine handles slots, cuts a batch into calls, pads rows, runs the segments in order, and
selects the tokens whose choices a head computes. A runner runs one call through one segment.
"""

from __future__ import annotations

from array import array
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from engines.base import Choices, Row, SegmentDone, check_rows
from engines.cache.pools import CAPACITIES, CacheTensor, MakePool
from engines.cache.slots import SlotCache, SlotEngine
from engines.calls import Call, plan_calls

MAX_FRAMES = 64
"""Number of call shapes whose buffers are kept."""


class Stage(NamedTuple):
    """One segment, as the engine sees it."""

    end: int
    """Number of layers that have run after it."""
    exit: bool = False
    """True if an exit head follows."""


class Inputs:
    """Input arrays of a call, in host memory."""

    def __init__(self, count: int, width: int) -> None:
        self._width = width
        tokens = count * width
        memory = np.zeros(2 * (tokens + count), np.int64)
        self._memory = memory.data.cast("B").cast("q")
        ids, positions, starts, lengths = np.split(memory, np.cumsum([tokens, tokens, count]))
        self.ids = ids.reshape(count, width)
        self.positions = positions.reshape(count, width)
        self.starts = starts
        """[count]: positions before the new tokens."""
        self.lengths = lengths
        """[count]: starts + width."""

    def fill(self, ids: list[int], starts: list[int], last_position: int) -> None:
        """Sets the ids, [count * width], and what follows from the starts, [count]. Pads beyond the
        last position have that position.

        All in one assignment, since each call of numpy takes some µs after a step has emptied the
        processor's caches.
        """
        width = self._width
        positions = [
            min(position, last_position)
            for start in starts
            for position in range(start, start + width)
        ]
        values = ids + positions + starts + [start + width for start in starts]
        self._memory[:] = array("q", values)

    def named(self) -> dict[str, npt.NDArray[np.int64]]:
        """The arrays by their input names in the graphs."""
        return {
            "input_ids": self.ids,
            "position_ids": self.positions,
            "write_indices": self.starts,
            "kv_lengths": self.lengths,
        }


class Frame(Protocol):
    """Buffers for calls of one shape: the same slots and the same width."""

    @property
    def inputs(self) -> Inputs: ...

    def run(self, stage: int, select: npt.NDArray[np.int64]) -> Sequence[npt.NDArray[Any]]:
        """Runs a segment, then its head (the final head, or the segment's exit head).

        The first segment reads the inputs, a later one the hidden states of the segment before.
        `select` [N] are flat indices into the call's count * width tokens. Returns the head's
        outputs for them: argmax [N], top_ids and top_logits [N, TOP], logits [N, vocabulary]. With
        N = 0 no head runs and the result is empty. Raises `EngineError`.
        """


class Runner(Protocol):
    """A loaded model that runs one call through one segment."""

    @property
    def stages(self) -> Sequence[Stage]: ...

    @property
    def tensors(self) -> Sequence[CacheTensor]:
        """KV cache tensors of a slot."""

    @property
    def make_pool(self) -> MakePool: ...

    def frame(self, call: Call) -> Frame:
        """Makes buffers for calls of this call's shape."""


@dataclass(frozen=True)
class Sizes:
    """Sizes of an engine: `vocabulary` in ids, `context` and `capacities` in positions."""

    vocabulary: int
    context: int
    slots: int
    min_tokens: int
    capacities: Sequence[int] = CAPACITIES
    free: Callable[[], int] | None = None
    """Returns the free bytes of the memory that holds the caches; None for host memory."""


class StagedEngine(SlotEngine):
    """An engine for a target (segments, exit heads, head) or a draft (one segment)."""

    def __init__(self, runner: Runner, sizes: Sizes) -> None:
        super().__init__(SlotCache(runner.tensors, sizes.slots, sizes.capacities, runner.make_pool))
        self.vocabulary = sizes.vocabulary
        self.context = sizes.context
        self.min_tokens = sizes.min_tokens
        self.free = sizes.free
        self._runner = runner
        self._frames: OrderedDict[tuple[int, ...], Frame] = OrderedDict()
        """Frames by capacity, pool generation and call shape, least recently used first."""
        self._generations: dict[int, int] = {}

    def slot_bytes(self, positions: int) -> int:
        return super().slot_bytes(positions + self.min_tokens - 1)

    def run(self, rows: Sequence[Row]) -> Iterator[SegmentDone]:
        check_rows(self, rows)
        calls = plan_calls(rows, self._cache, self.min_tokens)
        with self._cache.pinned():
            yield from self._run(rows, calls)

    def _run(self, rows: Sequence[Row], calls: Sequence[Call]) -> Iterator[SegmentDone]:
        self._drop_stale()
        frames = [self._fill(call, rows) for call in calls]
        stages = self._runner.stages
        for number, stage in enumerate(stages):
            final = number == len(stages) - 1
            choices: list[Choices | None] = [None] * len(rows)
            for call, frame in zip(calls, frames, strict=True):
                asking = _asking(call, rows, final) if final or stage.exit else []
                _split(frame.run(number, _select(call, rows, asking)), rows, asking, choices)
            if final:
                for row in rows:
                    self._cache.length[row.slot] = row.start + len(row.tokens)
            yield SegmentDone(stage.end, final, choices)

    def _drop_stale(self) -> None:
        """Drops the frames that are bound to the old arrays of a pool that has moved."""
        current = self._cache.generations()
        if current != self._generations:
            self._generations = current
            for key in [key for key in self._frames if current[key[0]] != key[1]]:
                del self._frames[key]

    def _frame(self, call: Call) -> Frame:
        pool = call.pool
        key = (pool.capacity, pool.generation, call.first, call.count, call.width)
        frame = self._frames.get(key)
        if frame is None:
            frame = self._frames[key] = self._runner.frame(call)
            if len(self._frames) > MAX_FRAMES:
                self._frames.popitem(last=False)
        self._frames.move_to_end(key)
        return frame

    def _fill(self, call: Call, rows: Sequence[Row]) -> Frame:
        """Returns the call's frame with its inputs filled; unused tokens are pads (id 0)."""
        frame = self._frame(call)
        ids: list[int] = []
        starts = []
        for place, number in enumerate(call.members):
            if number is None:
                starts.append(self._cache.length[call.pool.occupants[call.first + place]])
            else:
                ids += rows[number].tokens
                starts.append(rows[number].start)
            ids += [0] * ((place + 1) * call.width - len(ids))
        frame.inputs.fill(ids, starts, self.context - 1)
        return frame


def _asking(call: Call, rows: Sequence[Row], final: bool) -> list[tuple[int, int]]:
    """Returns (place in the call, index in the batch) of the rows that ask this head."""
    return [
        (place, number)
        for place, number in enumerate(call.members)
        if number is not None and rows[number].asks(final=final)
    ]


def _select(
    call: Call, rows: Sequence[Row], asking: Sequence[tuple[int, int]]
) -> npt.NDArray[np.int64]:
    """Returns flat indices, in `[count * width]`, of the tokens whose choices a head computes."""
    picked: list[int] = []
    for place, number in asking:
        row = rows[number]
        end = place * call.width + len(row.tokens)
        picked += range(end - row.choice_count, end)
    return _indices(tuple(picked))


@lru_cache(maxsize=MAX_FRAMES)
def _indices(picked: tuple[int, ...]) -> npt.NDArray[np.int64]:
    """Returns an array of indices, the same one for the next call: most steps select alike."""
    return np.array(picked, np.int64)


def _split(
    outputs: Sequence[npt.NDArray[Any]],
    rows: Sequence[Row],
    asking: Sequence[tuple[int, int]],
    choices: list[Choices | None],
) -> None:
    """Splits a head's outputs, [N, …] each, into `choices` of the rows that they belong to."""
    if len(asking) == 1:
        choices[asking[0][1]] = Choices(*outputs)
        return
    done = 0
    for _, number in asking:
        cut = slice(done, done + rows[number].choice_count)
        choices[number] = Choices(*(output[cut] for output in outputs))
        done = cut.stop
