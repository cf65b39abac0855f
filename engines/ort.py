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
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import onnxruntime
from onnxruntime.capi import onnxruntime_pybind11_state as _native

from edgespec.errors import EngineError
from edgespec.manifest import Bundle
from edgespec.profiles import ONNX_RUNTIME, runs_graphs
from engines.base import Choices, Row, Step, check_rows
from engines.batches import Call, plan
from engines.slots import CacheTensor, Pool, SlotCache

FRAMES = 64
"""Shapes of call whose bindings are kept."""
_DTYPES: Mapping[str, Any] = {
    "tensor(float)": np.float32,
    "tensor(float16)": np.float16,
    "tensor(int64)": np.int64,
}
ORT_ERRORS: tuple[type[Exception], ...] = (
    RuntimeError,
    ValueError,
    # ONNX Runtime's own have no base but Exception.
    *(
        kind
        for kind in vars(_native).values()
        if isinstance(kind, type) and issubclass(kind, Exception)
    ),
)
HEAD_OUTPUTS = ("argmax", "top_ids", "top_logits", "logits")


@dataclass(frozen=True)
class OrtSettings:
    threads: int = 1
    slots: int = 16
    min_tokens: int = 2
    """2 for exactness; a draft may take 1, since its tokens are verified anyway."""
    arena: bool = True
    """ORT's memory arena: faster, and keeps its peak. Off on devices short of memory."""
    providers: tuple[str, ...] = ("CPUExecutionProvider",)


class Graph:
    """One ONNX file in a session, with its inputs and outputs by name."""

    def __init__(self, path: Path, settings: OrtSettings) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = settings.threads
        options.inter_op_num_threads = 1
        options.enable_cpu_mem_arena = settings.arena
        options.log_severity_level = 3
        # Both sides may share cores; a spinning pool would take the other's.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        # int8 dot products for QDQ weights: 2.7 times fp32 for one row, same bits in any batch.
        options.add_session_config_entry("session.qdq_matmulnbits_accuracy_level", "4")
        available = onnxruntime.get_available_providers()
        providers = [provider for provider in settings.providers if provider in available]
        try:
            self.session = onnxruntime.InferenceSession(str(path), options, providers=providers)
        except ORT_ERRORS as error:
            version = onnxruntime.__version__
            if not runs_graphs(version):
                needed = ".".join(map(str, ONNX_RUNTIME))
                raise EngineError(
                    f"ONNX Runtime {version} is too old for the graphs, which need {needed}; "
                    "install a newer one (Python 3.11 or newer has it), or use --drafter ngram"
                ) from error
            raise EngineError(
                f"ONNX Runtime {version} cannot load {path}: {_reason(error)}"
            ) from error
        self.inputs = {i.name: i for i in self.session.get_inputs()}
        self.outputs = {o.name: o for o in self.session.get_outputs()}

    def dtype(self, name: str) -> Any:
        return _DTYPES[(self.inputs.get(name) or self.outputs[name]).type]


class LoadedSegment(NamedTuple):
    end: int
    """Layers done after it."""
    graph: Graph
    exit: Graph | None = None


class _Frame:
    """Buffers and bindings for calls of one shape."""

    def __init__(self, chain: Sequence[Graph], pool: Pool, first: int, count: int, width: int):
        self.ids = np.zeros((count, width), np.int64)
        self.positions = np.zeros((count, width), np.int64)
        self.starts = np.zeros(count, np.int64)
        self.lengths = np.zeros(count, np.int64)
        self.tensors: dict[str, npt.NDArray[Any]] = {
            "input_ids": self.ids,
            "position_ids": self.positions,
            "write_indices": self.starts,
            "kv_lengths": self.lengths,
        }
        for name, array in pool.arrays.items():
            self.tensors[name] = array[first : first + count]
        self.generation = pool.generation
        self.bindings = [self._bind(graph, count, width) for graph in chain]

    def _bind(self, graph: Graph, count: int, width: int) -> Any:
        binding = graph.session.io_binding()
        for name, info in graph.outputs.items():
            if name.startswith(("hidden.", "features")):
                shape = (count, width, info.shape[-1])
                self.tensors[name] = np.empty(shape, graph.dtype(name))
        for name in graph.inputs:
            if name in self.tensors:
                bind(binding.bind_input, name, self.tensors[name])
        for name in graph.outputs:
            source = name.removesuffix(".out")
            if source in self.tensors:
                bind(binding.bind_output, name, self.tensors[source])
        return binding


def _reason(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


def bind(method: Any, name: str, array: npt.NDArray[Any]) -> None:
    method(name, "cpu", 0, array.dtype.type, array.shape, array.ctypes.data)


class OrtEngine:
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
        self.vocabulary = vocabulary
        self.context = context
        self._segments = segments
        self._head = head
        self._min_tokens = settings.min_tokens
        self._cache = SlotCache(
            [tensor for segment in segments for tensor in _cache_tensors(segment.graph)],
            settings.slots,
        )
        self._frames: OrderedDict[tuple[int, int, int, int], _Frame] = OrderedDict()

    def open(self) -> int:
        return self._cache.open()

    def close(self, slot: int) -> None:
        self._cache.close(slot)

    def truncate(self, slot: int, length: int) -> None:
        self._cache.length[slot] = min(length, self._cache.length[slot])

    def cached(self, slot: int) -> int:
        return self._cache.length[slot]

    def run(self, rows: Sequence[Row]) -> Iterator[Step]:
        check_rows(self, rows)
        calls = plan(rows, self._cache, self._min_tokens)
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
                    raise EngineError(f"ONNX Runtime failed: {_reason(error)}") from error
                _deal(heads, rows, wanting, choices)
            if final:
                for row in rows:
                    self._cache.length[row.slot] = row.start + len(row.tokens)
            yield Step(segment.end, final, choices)

    def _run_stage(
        self, stage: int, frame: _Frame, select: npt.NDArray[np.int64]
    ) -> list[npt.NDArray[Any]]:
        """One segment of one call, and the head behind it for the selected tokens, if any."""
        segment, binding = self._segments[stage], frame.bindings[stage]
        if "select" in segment.graph.inputs:  # the head is inside, and needs at least one token
            padded = select if select.size else np.zeros(1, np.int64)
            return _run_head(segment.graph, binding, padded)
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
        return _run_head(self._head, binding, select)

    def _frame(self, call: Call) -> _Frame:
        pool = call.pool
        key = (pool.capacity, call.first, call.count, call.width)
        frame = self._frames.get(key)
        if frame is None or frame.generation != pool.generation:
            # A stale frame keeps the arrays alive that its pool has outgrown.
            for other in [k for k in self._frames if k[0] == pool.capacity]:
                if self._frames[other].generation != pool.generation:
                    del self._frames[other]
            graphs = [segment.graph for segment in self._segments]
            frame = self._frames[key] = _Frame(graphs, pool, call.first, call.count, call.width)
            if len(self._frames) > FRAMES:
                self._frames.popitem(last=False)
        self._frames.move_to_end(key)
        return frame

    def _fill(self, call: Call, rows: Sequence[Row]) -> _Frame:
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


def _cache_tensors(graph: Graph) -> list[CacheTensor]:
    return [
        CacheTensor(name, info.shape[1], info.shape[3], graph.dtype(name))
        for name, info in graph.inputs.items()
        if name.startswith("cache_")
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


def _run_head(graph: Graph, binding: Any, select: npt.NDArray[np.int64]) -> list[npt.NDArray[Any]]:
    """Runs a graph that ends in the head; its outputs, fresh, [N, …] for the N selected tokens."""
    outputs = []
    for name in HEAD_OUTPUTS:
        shape = (len(select), *graph.outputs[name].shape[1:])
        outputs.append(np.empty(shape, graph.dtype(name)))
        bind(binding.bind_output, name, outputs[-1])
    bind(binding.bind_input, "select", select)
    graph.session.run_with_iobinding(binding)
    return outputs


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
