"""ONNX Runtime: the graphs of a bundle over an in-place KV cache.

Every cache tensor is bound as input and as output of a graph with the same address, so it is
written in place. The bindings for one shape of call (pool, neighbours, width) are made once and
kept in a frame.

A target never runs one new token alone (`min_tokens=2`): ORT's attention takes another path for it,
whose result differs in the last bits (4e-7, which int8 activations blow up to whole logits). From
two tokens up, every way of computing a position gives the same bits.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from edgespec import profiles
from edgespec.config import usable_cores
from edgespec.errors import EngineError
from edgespec.manifest import Bundle
from engines.batches import Call
from engines.ort_graph import ORT_ERRORS, Graph, OrtSettings, bind, reason, run_head
from engines.pools import HostPool, MakePool
from engines.staged import Inputs, Sizes, Stage, StagedEngine

__all__ = ["Graph", "OrtSettings", "load_draft", "load_target"]


class LoadedSegment(NamedTuple):
    end: int
    """Layers done after it."""
    graph: Graph
    exit: Graph | None = None


class OrtRunner:
    """Segments with their exit heads, and the head; None where the last graph has it inside."""

    make_pool: MakePool = HostPool

    def __init__(self, segments: Sequence[LoadedSegment], head: Graph | None) -> None:
        self.segments = segments
        self.head = head
        self.stages = [Stage(segment.end, segment.exit is not None) for segment in segments]
        self.tensors = [tensor for part in segments for tensor in part.graph.cache_tensors()]

    def frame(self, call: Call) -> OrtFrame:
        return OrtFrame(self, call)


class OrtFrame:
    """Buffers and bindings for calls of one shape."""

    def __init__(self, runner: OrtRunner, call: Call) -> None:
        self.inputs = Inputs(call.count, call.width)
        self._runner = runner
        self._tensors: dict[str, npt.NDArray[Any]] = dict(self.inputs.named())
        for name, array in call.pool.arrays.items():
            self._tensors[name] = array[call.first : call.first + call.count]
        self._bindings = [
            self._bind(segment.graph, call.count, call.width) for segment in runner.segments
        ]

    def run(self, stage: int, select: npt.NDArray[np.int64]) -> list[npt.NDArray[Any]]:
        try:
            return self._run(stage, select)
        except ORT_ERRORS as error:
            raise EngineError(f"ONNX Runtime failed: {reason(error)}") from error

    def _bind(self, graph: Graph, count: int, width: int) -> Any:
        binding = graph.session.io_binding()
        for name, info in graph.outputs.items():
            if name.startswith(("hidden.", "features")):
                shape = (count, width, info.shape[-1])
                self._tensors[name] = np.empty(shape, graph.dtype(name))
        for name in graph.inputs:
            if name in self._tensors:
                bind(binding.bind_input, name, self._tensors[name])
        for name in graph.outputs:
            source = name.removesuffix(".out")
            if source in self._tensors:
                bind(binding.bind_output, name, self._tensors[source])
        return binding

    def _run(self, stage: int, select: npt.NDArray[np.int64]) -> list[npt.NDArray[Any]]:
        segment, binding = self._runner.segments[stage], self._bindings[stage]
        if "select" in segment.graph.inputs:  # the head is inside, and needs at least one token
            padded = select if select.size else np.zeros(1, np.int64)
            return run_head(segment.graph, binding, padded)
        segment.graph.session.run_with_iobinding(binding)
        if not select.size:
            return []
        features = self._tensors.get("features")
        if segment.exit is not None:
            name = f"hidden.{segment.end}"
            features = segment.exit.session.run(None, {name: self._tensors[name]})[0]
        head = self._runner.head
        assert head is not None
        assert features is not None
        binding = head.session.io_binding()
        bind(binding.bind_input, "features", features)
        return run_head(head, binding, select)


def load_target(bundle: Bundle, settings: OrtSettings) -> StagedEngine:
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
    runner = OrtRunner(segments, Graph(bundle.path(target.head), settings))
    return _engine(runner, target.architecture.vocabulary, bundle, settings)


def open_target(bundle: Bundle, threads: int) -> StagedEngine:
    return load_target(bundle, OrtSettings(threads=threads))


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
        capacities=chosen.capacities,
    )


def load_draft(bundle: Bundle, profile: str, settings: OrtSettings) -> StagedEngine:
    """The bundle's draft for a profile. Checks the files it reads."""
    draft = bundle.draft(profile)
    bundle.check(f"draft/{profile}")
    graph = Graph(bundle.path(draft.graph), settings)
    runner = OrtRunner([LoadedSegment(draft.architecture.layers, graph)], None)
    return _engine(runner, draft.architecture.vocabulary, bundle, settings)


def _engine(
    runner: OrtRunner, vocabulary: int, bundle: Bundle, settings: OrtSettings
) -> StagedEngine:
    sizes = Sizes(
        vocabulary,
        bundle.manifest.context,
        settings.slots,
        settings.min_tokens,
        settings.capacities,
    )
    return StagedEngine(runner, sizes)
