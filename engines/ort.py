"""ONNX Runtime: the graphs of a bundle over an in-place KV cache.

Every cache tensor is bound as input and as output of a graph with the same address, so
`TensorScatter` writes it in place. The bindings for one shape of call (pool, neighbours, width) are
made once and kept in a frame.

A target never runs one new token alone (`min_tokens=2`): ORT's attention takes another path for it,
whose result differs in the last bits (4e-7, which int8 activations blow up to whole logits). From
two tokens up, every way of computing a position gives the same bits.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from edgespec import profiles
from edgespec.config import usable_cores
from edgespec.errors import EngineError
from edgespec.manifest import Bundle
from engines.base import Choices, Row, Step, check_rows
from engines.batches import Call, plan
from engines.ort_graph import ORT_ERRORS, Frame, Graph, OrtSettings, bind, reason, run_head
from engines.slots import SlotCache, SlotEngine

__all__ = ["Graph", "OrtEngine", "OrtSettings", "load_draft", "load_target"]

FRAMES = 64
"""Shapes of call whose bindings are kept."""


class LoadedSegment(NamedTuple):
    end: int
    """Layers done after it."""
    graph: Graph
    exit: Graph | None = None


class OrtEngine(SlotEngine):
    """A target (segments, exit heads, head) or a draft (one graph with its head inside)."""

    def __init__(
        self,
        segments: Sequence[LoadedSegment],
        head: Graph | None,
        *,
        vocabulary: int,
        context: int,
        settings: OrtSettings,
    ) -> None:
        """`head` is None where the last segment's graph has it inside."""
        tensors = [tensor for segment in segments for tensor in segment.graph.cache_tensors()]
        super().__init__(SlotCache(tensors, settings.slots))
        self.vocabulary = vocabulary
        self.context = context
        self._segments = segments
        self._head = head
        self.min_tokens = settings.min_tokens
        self._frames: OrderedDict[tuple[int, int, int, int], Frame] = OrderedDict()

    def slot_bytes(self, positions: int) -> int:
        return super().slot_bytes(positions + self.min_tokens - 1)

    def run(self, rows: Sequence[Row]) -> Iterator[Step]:
        check_rows(self, rows)
        calls = plan(rows, self._cache, self.min_tokens)
        with self._cache.still():
            yield from self._run(rows, calls)

    def _run(self, rows: Sequence[Row], calls: Sequence[Call]) -> Iterator[Step]:
        frames = [self._fill(call, rows) for call in calls]
        for stage, segment in enumerate(self._segments):
            final = stage == len(self._segments) - 1
            choices: list[Choices | None] = [None] * len(rows)
            for call, frame in zip(calls, frames, strict=True):
                wanting = [
                    (place, number)
                    for place, number in enumerate(call.members)
                    if number is not None
                    and rows[number].wanted
                    and (final or (segment.exit is not None and rows[number].hints))
                ]
                try:
                    heads = self._run_stage(stage, frame, _select(call, rows, wanting))
                except ORT_ERRORS as error:
                    raise EngineError(f"ONNX Runtime failed: {reason(error)}") from error
                _deal(heads, rows, wanting, choices)
            if final:
                for row in rows:
                    self._cache.length[row.slot] = row.start + len(row.tokens)
            yield Step(segment.end, final, choices)

    def _run_stage(
        self, stage: int, frame: Frame, select: npt.NDArray[np.int64]
    ) -> list[npt.NDArray[Any]]:
        """One segment of one call, and the head behind it for the selected tokens, if any."""
        segment, binding = self._segments[stage], frame.bindings[stage]
        if "select" in segment.graph.inputs:  # the head is inside, and needs at least one token
            padded = select if select.size else np.zeros(1, np.int64)
            return run_head(segment.graph, binding, padded)
        segment.graph.session.run_with_iobinding(binding)
        if not select.size:
            return []
        features = frame.tensors.get("features")
        if segment.exit is not None:
            name = f"hidden.{segment.end}"
            features = segment.exit.session.run(None, {name: frame.tensors[name]})[0]
        assert self._head is not None
        assert features is not None
        binding = self._head.session.io_binding()
        bind(binding.bind_input, "features", features)
        return run_head(self._head, binding, select)

    def _frame(self, call: Call) -> Frame:
        pool = call.pool
        key = (pool.capacity, call.first, call.count, call.width)
        frame = self._frames.get(key)
        if frame is None:
            graphs = [segment.graph for segment in self._segments]
            frame = self._frames[key] = Frame(graphs, pool, call.first, call.count, call.width)
            if len(self._frames) > FRAMES:
                self._frames.popitem(last=False)
        self._frames.move_to_end(key)
        return frame

    def _fill(self, call: Call, rows: Sequence[Row]) -> Frame:
        frame = self._frame(call)
        frame.ids.fill(0)
        for place, number in enumerate(call.members):
            if number is None:
                start = self._cache.length[call.pool.occupants[call.first + place]]
            else:
                start = rows[number].start
                frame.ids[place, : len(rows[number].tokens)] = rows[number].tokens
            frame.starts[place] = start
        np.add(frame.starts, call.width, out=frame.lengths)
        np.add(frame.starts[:, None], np.arange(call.width), out=frame.positions)
        np.minimum(frame.positions, self.context - 1, out=frame.positions)
        return frame


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


def load_target(bundle: Bundle, settings: OrtSettings) -> OrtEngine:
    """The bundle's target, segment by segment. Checks the files it reads."""
    bundle.check("target")
    target = bundle.manifest.target
    segments = [
        LoadedSegment(
            segment.end,
            Graph(bundle.path(segment.graph), settings),
            Graph(bundle.path(segment.exit), settings) if segment.exit else None,
        )
        for segment in target.segments
    ]
    return OrtEngine(
        segments,
        Graph(bundle.path(target.head), settings),
        vocabulary=target.architecture.vocabulary,
        context=bundle.manifest.context,
        settings=settings,
    )


def device_settings(name: str, threads: int = 0, slots: int = 1) -> OrtSettings:
    """How a device runs the draft of a profile: single tokens, as the profile says. `threads` 0 is
    what the profile says too, and there 0 is every usable core."""
    chosen = profiles.profile(name)
    return OrtSettings(
        threads=threads or chosen.threads or usable_cores(),
        slots=slots,
        min_tokens=1,
        arena=chosen.arena,
        providers=chosen.providers,
    )


def load_draft(bundle: Bundle, profile: str, settings: OrtSettings) -> OrtEngine:
    """The bundle's draft for a profile. Checks the files it reads."""
    draft = bundle.draft(profile)
    bundle.check(f"draft/{profile}")
    graph = Graph(bundle.path(draft.graph), settings)
    return OrtEngine(
        [LoadedSegment(draft.architecture.layers, graph)],
        None,
        vocabulary=draft.architecture.vocabulary,
        context=bundle.manifest.context,
        settings=settings,
    )
