"""An engine over a runner: what the back ends have in common.

Slots, the cutting of a batch into calls, padding, segments, and the tokens whose choices are
wanted. A runner knows how one call runs through one segment, and nothing else.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from engines.base import Choices, Row, Step, check_rows
from engines.batches import Call, plan
from engines.cache.pools import BUCKETS, CacheTensor, MakePool
from engines.cache.slots import SlotCache, SlotEngine

FRAMES = 64
"""Shapes of call whose buffers are kept."""


class Stage(NamedTuple):
    end: int
    """Layers done after it."""
    exit: bool = False
    """Whether an exit head follows."""


class Inputs:
    """What a call is filled with, in a host's memory."""

    def __init__(self, count: int, width: int) -> None:
        self.ids = np.zeros((count, width), np.int64)
        self.positions = np.zeros((count, width), np.int64)
        self.starts = np.zeros(count, np.int64)
        """[count]: positions that stand before the new tokens."""
        self.lengths = np.zeros(count, np.int64)
        """[count]: starts + width."""

    def named(self) -> dict[str, npt.NDArray[np.int64]]:
        """By the graphs' names."""
        return {
            "input_ids": self.ids,
            "position_ids": self.positions,
            "write_indices": self.starts,
            "kv_lengths": self.lengths,
        }


class Frame(Protocol):
    """Buffers for calls of one shape: the same slots, as wide."""

    @property
    def inputs(self) -> Inputs: ...

    def run(self, stage: int, select: npt.NDArray[np.int64]) -> Sequence[npt.NDArray[Any]]:
        """Runs a segment, the first one over the inputs and the others over what the one before
        has left, and then the head, an exit's or the last, for the selected of all count * width
        tokens: argmax [N], top_ids and top_logits [N, TOP], logits [N, vocabulary]. Nothing
        selected: nothing comes back. Raises `EngineError`."""


class Runner(Protocol):
    @property
    def stages(self) -> Sequence[Stage]: ...

    @property
    def tensors(self) -> Sequence[CacheTensor]:
        """What a slot consists of."""

    @property
    def make_pool(self) -> MakePool: ...

    def frame(self, call: Call) -> Frame:
        """New buffers for calls like this one."""


@dataclass(frozen=True)
class Sizes:
    vocabulary: int
    context: int
    slots: int
    min_tokens: int
    capacities: Sequence[int] = BUCKETS
    free: Callable[[], int] | None = None
    """Free bytes where the caches lie; None: in the host's memory, of which anybody can ask."""


class StagedEngine(SlotEngine):
    """A target (segments, exit heads, head) or a draft (one segment)."""

    def __init__(self, runner: Runner, sizes: Sizes) -> None:
        super().__init__(SlotCache(runner.tensors, sizes.slots, sizes.capacities, runner.make_pool))
        self.vocabulary = sizes.vocabulary
        self.context = sizes.context
        self.min_tokens = sizes.min_tokens
        self.free = sizes.free
        self._runner = runner
        self._frames: OrderedDict[tuple[int, ...], Frame] = OrderedDict()
        """By capacity, generation and shape."""
        self._generations: dict[int, int] = {}

    def slot_bytes(self, positions: int) -> int:
        return super().slot_bytes(positions + self.min_tokens - 1)

    def run(self, rows: Sequence[Row]) -> Iterator[Step]:
        check_rows(self, rows)
        calls = plan(rows, self._cache, self.min_tokens)
        with self._cache.still():
            yield from self._run(rows, calls)

    def _run(self, rows: Sequence[Row], calls: Sequence[Call]) -> Iterator[Step]:
        self._drop_stale()
        frames = [self._fill(call, rows) for call in calls]
        stages = self._runner.stages
        for number, stage in enumerate(stages):
            final = number == len(stages) - 1
            choices: list[Choices | None] = [None] * len(rows)
            for call, frame in zip(calls, frames, strict=True):
                wanting = _wanting(call, rows, final, stage.exit)
                _deal(frame.run(number, _select(call, rows, wanting)), rows, wanting, choices)
            if final:
                for row in rows:
                    self._cache.length[row.slot] = row.start + len(row.tokens)
            yield Step(stage.end, final, choices)

    def _drop_stale(self) -> None:
        """Lets go of frames that are bound to where a pool no longer lies."""
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
            if len(self._frames) > FRAMES:
                self._frames.popitem(last=False)
        self._frames.move_to_end(key)
        return frame

    def _fill(self, call: Call, rows: Sequence[Row]) -> Frame:
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


def _wanting(call: Call, rows: Sequence[Row], final: bool, exit: bool) -> list[tuple[int, int]]:
    """(place in the call, row's number) of those who want choices of this head."""
    return [
        (place, number)
        for place, number in enumerate(call.members)
        if number is not None and rows[number].wanted and (final or (exit and rows[number].hints))
    ]


def _select(
    call: Call, rows: Sequence[Row], wanting: Sequence[tuple[int, int]]
) -> npt.NDArray[np.int64]:
    """Flat indices, in `[count * width]`, of the tokens whose choices are wanted."""
    picked = [
        place * call.width + len(rows[number].tokens) - rows[number].wanted + j
        for place, number in wanting
        for j in range(rows[number].wanted)
    ]
    return np.array(picked, np.int64)


def _deal(
    heads: Sequence[npt.NDArray[Any]],
    rows: Sequence[Row],
    wanting: Sequence[tuple[int, int]],
    choices: list[Choices | None],
) -> None:
    """Cuts a head's outputs into the rows that they belong to."""
    done = 0
    for _, number in wanting:
        cut = slice(done, done + rows[number].wanted)
        choices[number] = Choices(*(output[cut] for output in heads))
        done = cut.stop
