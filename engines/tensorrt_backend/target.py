"""TensorRT: the engines that `edgespec build` made of a bundle's graphs, one for each capacity.

TensorRT's KV update demands that a cache's input and output share their memory, and says so of an
engine (`unaliased`). Of the plain operators of opset 21 (a scatter) nothing is promised: what they
read and write then overlaps, and whether that works is unproven; hence `self_check`, which runs
before anything else does.

The engines of a graph hold its weights once each, so capacities should be few.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

from edgespec.errors import EngineError
from edgespec.manifest import Built, Bundle
from engines.cuda import CudaDevice, GpuDevice, Runtime, count, free_memory
from engines.machine import profiles
from engines.staged import Sizes
from engines.tensorrt_backend.api import (
    installation,
    load,
    matching_engine,
    mismatch,
    rebuild_command,
)
from engines.tensorrt_backend.bounded import BoundedEngine
from engines.tensorrt_backend.engine import LoadedEngine
from engines.tensorrt_backend.runner import TensorrtRunner, TensorrtSegment
from engines.tensorrt_backend.self_check import self_check

log = logging.getLogger("edgespec.engines")


def _built(
    trt: Any, bundle: Bundle, graph: str, profile: str, capacities: Sequence[int]
) -> list[Built]:
    """The engines of one graph. Raises `EngineError` naming the command that builds what is missing
    or does not match."""
    here = installation(trt)
    return [matching_engine(bundle, graph, capacity, profile, here) for capacity in capacities]


def _loaded(trt: Any, bundle: Bundle, built: Sequence[Built]) -> dict[int, LoadedEngine]:
    """By capacity."""
    return {
        one.capacity: LoadedEngine(
            trt, bundle.path(one.file), rebuild_command(bundle, one.graph, one.profile)
        )
        for one in built
    }


def _capacities(bundle: Bundle, graphs: Sequence[str], profile: str) -> list[int]:
    """Those that every graph was built for; the smallest of the profile's where there is none, so
    that somebody says what is missing."""
    built = [
        {engine.capacity for engine in bundle.manifest.engines if engine.graph == graph}
        for graph in graphs
    ]
    return sorted(set.intersection(*built)) or list(profiles.profile(profile).capacities[:1])


def _profile(bundle: Bundle, graph: str, usual: str) -> str:
    """That the engines of a graph were built for; `usual` where there are none."""
    names = (engine.profile for engine in bundle.manifest.engines if engine.graph == graph)
    return next(names, usual)


def runs_here(bundle: Bundle, graph: str) -> bool:
    """Whether a graph has engines, all of them match this machine, and TensorRT, cuda-python and a
    GPU are here. Why not, where there are engines, is a line in the log.

    A GPU is asked for by itself, since engines of TensorRT-RTX built without one match any."""
    engines = [engine for engine in bundle.manifest.engines if engine.graph == graph]
    if not engines:
        return False
    reason = _obstacle(bundle, engines)
    if reason:
        log.warning("the engines of %s stay unused: %s", graph, reason)
    return not reason


def _obstacle(bundle: Bundle, engines: Sequence[Built]) -> str:
    """Why these engines cannot run here; empty if they can."""
    try:
        here = installation(load())
        for engine in engines:
            if reason := mismatch(engine, bundle.manifest, here):
                return f"{engine.file} {reason}"
        return "" if count(Runtime()) else "there is no GPU that this process may use"
    except EngineError as error:
        return str(error)


def open_draft(
    bundle: Bundle,
    profile: str,
    slots: int,
    *,
    trt: Any = None,
    device: GpuDevice | None = None,
) -> BoundedEngine:
    """The bundle's draft for a profile, single tokens. Checks the files it reads.

    Raises `EngineError` where TensorRT, an engine that fits this machine, the GPU or its memory is
    missing, and where the engine computes nonsense.
    """
    draft = bundle.draft(profile)
    bundle.check(f"draft/{profile}", engines=True)
    trt = trt or load()
    hardware = _profile(bundle, draft.graph, profile)
    capacities = _capacities(bundle, [draft.graph], hardware)
    built = _built(trt, bundle, draft.graph, hardware, capacities)
    device = device or CudaDevice()
    segment = TensorrtSegment(draft.architecture.layers, _loaded(trt, bundle, built))
    runner = TensorrtRunner([segment], None, device)
    sizes = Sizes(draft.architecture.vocabulary, bundle.manifest.context, slots, 1)
    instead = profiles.profile(hardware).instead
    advice = f"use a draft of profile {instead[0]}" if instead else "use another draft"
    return _checked(runner, sizes, f"draft/{profile}", advice)


def open_target(
    bundle: Bundle,
    threads: int = 0,  # noqa: ARG001
    *,
    slots: int = 16,
    trt: Any = None,
    device: GpuDevice | None = None,
) -> BoundedEngine:
    """The bundle's target, segment by segment. `threads` is for other back ends. Raises as
    `open_draft`."""
    bundle.check("target", engines=True)
    target = bundle.manifest.target
    graphs = [segment.graph for segment in target.segments]
    trt = trt or load()
    hardware = _profile(bundle, graphs[0], profiles.CLOUD)
    capacities = _capacities(bundle, graphs, hardware)

    singles = [name for part in target.segments if (name := part.exit)] + [target.head]
    built = {graph: _built(trt, bundle, graph, hardware, capacities) for graph in graphs}
    built |= {graph: _built(trt, bundle, graph, hardware, [0]) for graph in singles}
    device = device or CudaDevice()
    loaded = {graph: _loaded(trt, bundle, engines) for graph, engines in built.items()}
    segments = [
        TensorrtSegment(part.end, loaded[part.graph], loaded[part.exit][0] if part.exit else None)
        for part in target.segments
    ]
    runner = TensorrtRunner(segments, loaded[target.head][0], device)
    sizes = Sizes(target.architecture.vocabulary, bundle.manifest.context, slots, 2)
    return _checked(runner, sizes, "target", "use --backend onnxruntime")


def _checked(runner: TensorrtRunner, sizes: Sizes, name: str, advice: str) -> BoundedEngine:
    most = runner.most_tokens
    least = min(sizes.min_tokens, most)
    context = min(sizes.context, runner.capacities[-1] - least + 1)
    free = free_memory(runner.device)
    sizes = Sizes(sizes.vocabulary, context, sizes.slots, least, runner.capacities, free)
    overlapping = sum(len(part.unaliased) for part in runner.engines())
    if overlapping:
        log.info("%s: %d caches are written in place without TensorRT's word", name, overlapping)
    # In slots of its own, since the number of slots may yet be limited.
    trial = BoundedEngine(runner, sizes, most, runner.most_rows)
    self_check(trial, f"the TensorRT engine of {name}", advice)
    return BoundedEngine(runner, sizes, most, runner.most_rows)
