"""The part of an engine that all back ends share, over a runner.

The engine handles slots, cuts a batch into calls, pads rows, runs the segments in order, and
selects the tokens whose choices a head computes. A runner runs one call through one segment.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
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
        self.ids = np.zeros((count, width), np.int64)
        self.positions = np.zeros((count, width), np.int64)
        self.starts = np.zeros(count, np.int64)
        """[count]: positions before the new tokens."""
        self.lengths = np.zeros(count, np.int64)
        """[count]: starts + width."""

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
        inputs = frame.inputs
        inputs.ids.fill(0)
        for place, number in enumerate(call.members):
            if number is None:
                start = self._cache.length[call.pool.occupants[call.first + place]]
            else:
                start = rows[number].start
                inputs.ids[place, : len(rows[number].tokens)] = rows[number].tokens
            inputs.starts[place] = start
        np.add(inputs.starts, call.width, out=inputs.lengths)
        np.add(inputs.starts[:, None], np.arange(call.width), out=inputs.positions)
        np.minimum(inputs.positions, self.context - 1, out=inputs.positions)
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
    picked = [
        place * call.width + len(rows[number].tokens) - rows[number].choice_count + j
        for place, number in asking
        for j in range(rows[number].choice_count)
    ]
    return np.array(picked, np.int64)


def _split(
    outputs: Sequence[npt.NDArray[Any]],
    rows: Sequence[Row],
    asking: Sequence[tuple[int, int]],
    choices: list[Choices | None],
) -> None:
    """Splits a head's outputs, [N, …] each, into `choices` of the rows that they belong to."""
    done = 0
    for _, number in asking:
        cut = slice(done, done + rows[number].choice_count)
        choices[number] = Choices(*(output[cut] for output in outputs))
        done = cut.stop
