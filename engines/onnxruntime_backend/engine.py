"""The ONNX Runtime back end: a bundle's graphs over a KV cache that is written in place.

Every cache tensor is bound to the same address as input and as output of a graph. The bindings for
one shape of call (pool, slots, width) are made once and kept in a frame. On a GPU, caches, hidden
states and features stay in its memory. ONNX Runtime itself copies ids from the host and choices to
it. Its own CUDA graphs are not used: they require every tensor on the device and one shape each.

A target never asks `Attention` for a single query, because that takes another path in ORT, with
other bits (`two_queries.py`). The products of one token have the bits of those of many on the CPUs
that were tried. A target is asked at load whether that holds here; if not, or on a GPU, the engine
pads single tokens to two (`min_tokens=2`). From two tokens up, every way of computing a position
gives the same bits.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Sequence
from contextlib import redirect_stdout
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import onnxruntime

from edgespec.config import usable_cores
from edgespec.errors import EngineError
from edgespec.manifest import Bundle
from engines.base import Engine, Row, final_choices
from engines.cache.device_memory import DeviceStore, device_pools
from engines.cache.pools import HostPool, MakePool
from engines.calls import Call
from engines.cuda import CudaDevice, GpuDevice, Runtime, count, free_memory
from engines.machine import profiles
from engines.machine.profiles import CPU, CUDA
from engines.onnxruntime_backend.graph import Graph, Tensor, bind
from engines.onnxruntime_backend.head import BoundHead, output_memory
from engines.onnxruntime_backend.session import ORT_ERRORS, OrtSettings, reason
from engines.onnxruntime_backend.two_queries import ASKED, query_places
from engines.staged import Inputs, Sizes, Stage, StagedEngine

__all__ = ["OrtSettings", "load_draft", "load_target"]

log = logging.getLogger("edgespec.engines")
PROBE_TOKENS = 4
"""Tokens of `same_bits_alone`, half of which run alone."""
SPIN_US = 50
"""Two threads, 30 layers of SmolLM2 at int4: 8.2 ms a step without, 6.6 with 10 µs, 6.4 with 50.
Beside a target that steps on the same two cores it costs: 12.7 ms without and 22.5 with 50 µs, and
the target's step 51 and 68 ms."""


class OrtSegment(NamedTuple):
    """Graphs of one segment."""

    end: int
    """Number of layers that have run after it."""
    graph: Graph
    exit: Graph | None = None


class OrtRunner:
    """Runs calls through segments with their exit heads and the final head."""

    def __init__(
        self, segments: Sequence[OrtSegment], head: Graph | None, device: GpuDevice | None = None
    ) -> None:
        """`head` is None if the last segment's graph contains the head.

        `device` is the memory of caches, hidden states and features; None for host memory.
        """
        self.segments = segments
        self.head = head
        self.outputs = output_memory(head or segments[-1].graph)
        self.stages = [Stage(segment.end, segment.exit is not None) for segment in segments]
        self.tensors = [tensor for part in segments for tensor in part.graph.cache_tensors()]
        self.make_pool: MakePool = device_pools(device) if device else HostPool
        self.empty: Callable[..., Tensor] = DeviceStore(device).empty if device else np.empty
        """Makes an uninitialised tensor from a shape and a type."""

    def frame(self, call: Call) -> OrtFrame:
        return OrtFrame(self, call)


class OrtFrame:
    """Buffers and bindings for calls of one shape."""

    def __init__(self, runner: OrtRunner, call: Call) -> None:
        self.inputs = Inputs(call.count, call.width)
        self._runner = runner
        self._shape = (call.count, call.width)
        self._tensors: dict[str, Tensor] = {**self.inputs.named(), **query_places(call.width)}
        for name, array in call.pool.arrays.items():
            self._tensors[name] = array[call.first : call.first + call.count]
        self._bindings = [self._bind(segment.graph) for segment in runner.segments]
        self._exits: dict[int, tuple[Any, Tensor]] = {}
        """Binding and output features of the exit head of each stage."""
        self._heads: dict[int, BoundHead] = {}

    def run(self, stage: int, select: npt.NDArray[np.int64]) -> list[npt.NDArray[Any]]:
        try:
            return self._run(stage, select)
        except ORT_ERRORS as error:
            raise EngineError(f"ONNX Runtime failed: {reason(error)}") from error

    def _bind(self, graph: Graph) -> Any:
        binding = graph.session.io_binding()
        for name in graph.outputs:
            if name.startswith(("hidden.", "features")):
                self._tensors[name] = self._states(graph, name)
        for name in graph.inputs:
            if name in self._tensors:
                bind(binding.bind_input, name, self._tensors[name])
        for name in graph.outputs:
            source = name.removesuffix(".out")
            if source in self._tensors:
                bind(binding.bind_output, name, self._tensors[source])
        return binding

    def _states(self, graph: Graph, name: str) -> Tensor:
        """Makes a tensor for an output `[count, width, hidden]`."""
        return self._runner.empty((*self._shape, graph.outputs[name].shape[-1]), graph.dtype(name))

    def _run(self, stage: int, select: npt.NDArray[np.int64]) -> list[npt.NDArray[Any]]:
        segment = self._runner.segments[stage]
        if "select" in segment.graph.inputs:  # contains the head, which takes at least one token
            padded = select if select.size else np.zeros(1, np.int64)
            return self._head(stage, segment.graph).run(padded)
        segment.graph.session.run_with_iobinding(self._bindings[stage])
        if not select.size:
            return []
        features = self._exit(stage) if segment.exit else self._tensors["features"]
        assert self._runner.head is not None
        return self._head(stage, self._runner.head, features).run(select)

    def _head(self, stage: int, graph: Graph, features: Tensor | None = None) -> BoundHead:
        """Returns the head after a stage. `features` None: the stage's graph contains it."""
        if stage not in self._heads:
            binding = self._bindings[stage]
            if features is not None:
                binding = graph.session.io_binding()
                bind(binding.bind_input, "features", features)
            self._heads[stage] = BoundHead(graph, binding, self._runner.outputs)
        return self._heads[stage]

    def _exit(self, stage: int) -> Tensor:
        """Runs the exit head after a stage and returns its features."""
        segment = self._runner.segments[stage]
        assert segment.exit is not None
        if stage not in self._exits:
            features = self._states(segment.exit, "features")
            binding = segment.exit.session.io_binding()
            name = f"hidden.{segment.end}"
            bind(binding.bind_input, name, self._tensors[name])
            bind(binding.bind_output, "features", features)
            self._exits[stage] = (binding, features)
        binding, features = self._exits[stage]
        segment.exit.session.run_with_iobinding(binding)
        return features


def open_device(settings: OrtSettings) -> GpuDevice | None:
    """Opens the GPU if the settings name CUDA and this ONNX Runtime has it; else returns None.

    Raises `EngineError` if the GPU, its driver or cuda-python is missing.
    """
    if CUDA not in settings.providers or CUDA not in onnxruntime.get_available_providers():
        return None
    device = CudaDevice()
    # CUDA's libraries may come from wheels, which only this function finds (since 1.21). It prints
    # the missing ones.
    if hasattr(onnxruntime, "preload_dlls"):
        with redirect_stdout(sys.stderr):
            onnxruntime.preload_dlls()
    return device


def usable_providers() -> tuple[str, ...]:
    """Returns the providers to use: CUDA first if this ONNX Runtime has it and there is a GPU."""
    if CUDA not in onnxruntime.get_available_providers():
        return (CPU,)
    try:
        if count(Runtime()):
            return (CUDA, CPU)
    except EngineError as error:
        log.warning("ONNX Runtime has CUDA, and runs on the CPU: %s", error)
    return (CPU,)


def load_target(
    bundle: Bundle, settings: OrtSettings, device: GpuDevice | None = None
) -> StagedEngine:
    """Loads the bundle's target, segment by segment, and checks its files."""
    bundle.check("target")
    target = bundle.manifest.target
    device = device or open_device(settings)

    def graph(name: str) -> Graph:
        path = bundle.path(name)
        return Graph(path, settings, device, opset=target.opset, role="target")

    segments = [
        OrtSegment(part.end, graph(part.graph), graph(part.exit) if part.exit else None)
        for part in target.segments
    ]
    runner = OrtRunner(segments, graph(target.head), device)
    vocabulary = target.architecture.vocabulary
    if all(ASKED in segment.graph.inputs for segment in segments):
        single = replace(settings, min_tokens=1)
        if same_bits_alone(_engine(runner, vocabulary, bundle, replace(single, slots=1), device)):
            settings = single
    return _engine(runner, vocabulary, bundle, settings, device)


def same_bits_alone(engine: Engine) -> bool:
    """Returns True if tokens that run alone get the bits that they get together.

    Whether a product takes another path for one row depends on its kernel, and this shows in nearly
    every logit.
    """
    slot = engine.open()
    ids = [place % engine.vocabulary for place in range(1, PROBE_TOKENS + 1)]
    (together,) = final_choices(engine, [Row(slot, 0, ids, PROBE_TOKENS)])
    assert together is not None
    for place in range(PROBE_TOKENS // 2, PROBE_TOKENS):
        (alone,) = final_choices(engine, [Row(slot, place, ids[place : place + 1])])
        assert alone is not None
        if not np.array_equal(alone.logits[0], together.logits[place]):
            return False
    return True


def open_target(bundle: Bundle, threads: int) -> StagedEngine:
    """Loads the bundle's target, on the GPU if there is one that ONNX Runtime can use."""
    return load_target(bundle, OrtSettings(threads=threads, providers=usable_providers()))


def device_settings(
    name: str, threads: int = 0, slots: int = 1, *, alone: bool = False
) -> OrtSettings:
    """Returns the settings of a device that runs the draft of a profile, one token a row.

    `threads` 0 takes the profile's number; if that is 0 too, every usable core. `alone`: no cloud
    computes on the same cores, so the threads may wait awake within a step.
    """
    chosen = profiles.profile(name)
    return OrtSettings(
        threads=threads or chosen.threads or usable_cores(),
        slots=slots,
        spin_us=SPIN_US if alone else 0,
        min_tokens=1,
        arena=chosen.arena,
        providers=chosen.providers,
        capacities=chosen.capacities,
    )


def load_draft(
    bundle: Bundle, profile: str, settings: OrtSettings, device: GpuDevice | None = None
) -> StagedEngine:
    """Loads the bundle's draft for a profile and checks its files."""
    draft = bundle.draft(profile)
    bundle.check(f"draft/{profile}")
    device = device or open_device(settings)
    graph = Graph(bundle.path(draft.graph), settings, device, opset=draft.opset)
    runner = OrtRunner([OrtSegment(draft.architecture.layers, graph)], None, device)
    return _engine(runner, draft.architecture.vocabulary, bundle, settings, device)


def _engine(
    runner: OrtRunner,
    vocabulary: int,
    bundle: Bundle,
    settings: OrtSettings,
    device: GpuDevice | None,
) -> StagedEngine:
    sizes = Sizes(
        vocabulary,
        bundle.manifest.context,
        settings.slots,
        settings.min_tokens,
        settings.capacities,
        free_memory(device) if device else None,
    )
    return StagedEngine(runner, sizes)


def open_draft(
    bundle: Bundle, profile: str, threads: int, slots: int, *, alone: bool = False
) -> StagedEngine:
    """Loads the bundle's draft for a device, as its profile says."""
    return load_draft(bundle, profile, device_settings(profile, threads, slots, alone=alone))
