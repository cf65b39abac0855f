"""Opens targets and drafts with the TensorRT engines that `edgespec build` made of their graphs.

TensorRT's KV update layer requires that a cache's input and output share their memory, and the
engine declares it (`LoadedEngine.unaliased`). The plain operators of opset 21 (a scatter) make no
such promise: their input and output overlap, which is unproven. Therefore `self_check` runs first.

Each engine of a graph holds all its weights, so there should be few capacities.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from edgespec.errors import EngineError
from edgespec.manifest import Built, Bundle
from engines.cuda import CudaDevice, GpuDevice, Runtime, count, free_memory
from engines.machine import profiles
from engines.staged import Sizes
from engines.tensorrt_backend.api import installation, load
from engines.tensorrt_backend.bounded import BoundedEngine
from engines.tensorrt_backend.engine import LoadedEngine
from engines.tensorrt_backend.matching import matching_engine, mismatch, rebuild_command
from engines.tensorrt_backend.model import TensorrtModel, TensorrtSegment
from engines.tensorrt_backend.runner import TensorrtRunner
from engines.tensorrt_backend.self_check import self_check

log = logging.getLogger("edgespec.engines")


def _built(
    trt: Any, bundle: Bundle, graph: str, profile: str, capacities: Sequence[int]
) -> list[Built]:
    """Returns the engines of one graph.

    Raises `EngineError`, with the command to run, if an engine is missing or does not match.
    """
    here = installation(trt)
    return [matching_engine(bundle, graph, capacity, profile, here) for capacity in capacities]


def _loaded(trt: Any, bundle: Bundle, built: Sequence[Built]) -> dict[int, LoadedEngine]:
    """Loads engines; returns them by capacity."""
    return {
        one.capacity: LoadedEngine(
            trt, bundle.path(one.file), rebuild_command(bundle, one.graph, one.profile)
        )
        for one in built
    }


def _capacities(bundle: Bundle, graphs: Sequence[str], profile: str) -> list[int]:
    """Returns the capacities that every graph was built for.

    If there is none, returns the profile's smallest one, for the error of `matching_engine`.
    """
    built = [
        {engine.capacity for engine in bundle.manifest.engines if engine.graph == graph}
        for graph in graphs
    ]
    return sorted(set.intersection(*built)) or list(profiles.profile(profile).capacities[:1])


def _profile(bundle: Bundle, graph: str, usual: str) -> str:
    """Returns the profile that a graph's engines were built for; `usual` if it has no engines."""
    names = (engine.profile for engine in bundle.manifest.engines if engine.graph == graph)
    return next(names, usual)


def runs_here(bundle: Bundle, graph: str) -> bool:
    """Return True if a graph has engines, all match this machine, and TensorRT, cuda-python and a
    GPU are present. Logs the reason if the graph's engines cannot run.

    The GPU is checked separately: engines of TensorRT-RTX that were built without one match any.
    """
    engines = [engine for engine in bundle.manifest.engines if engine.graph == graph]
    if not engines:
        return False
    reason = _obstacle(bundle, engines)
    if reason:
        log.warning("the engines of %s stay unused: %s", graph, reason)
    return not reason


def _obstacle(bundle: Bundle, engines: Sequence[Built]) -> str:
    """Returns why these engines cannot run here; empty if they can."""
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
    """Loads the bundle's draft for a profile; its rows may have one token. Checks its files.

    Raises `EngineError` if TensorRT, an engine for this machine, the GPU or memory is missing, or
    if the self-check fails.
    """
    draft = bundle.draft(profile)
    bundle.check(f"draft/{profile}", engines=True)
    trt = trt or load()
    hardware = _profile(bundle, draft.graph, profile)
    capacities = _capacities(bundle, [draft.graph], hardware)
    built = _built(trt, bundle, draft.graph, hardware, capacities)
    device = device or CudaDevice()
    segment = TensorrtSegment(draft.architecture.layers, _loaded(trt, bundle, built))
    model = TensorrtModel([segment], None, device)
    sizes = Sizes(draft.architecture.vocabulary, bundle.manifest.context, slots, 1)
    instead = profiles.profile(hardware).instead
    advice = f"use a draft of profile {instead[0]}" if instead else "use another draft"
    return _checked_engine(model, sizes, f"draft/{profile}", advice)


def open_target(
    bundle: Bundle,
    threads: int = 0,  # noqa: ARG001
    *,
    slots: int = 16,
    trt: Any = None,
    device: GpuDevice | None = None,
) -> BoundedEngine:
    """Loads the bundle's target, segment by segment. `threads` is for other back ends.

    Raises the errors of `open_draft`.
    """
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
    model = TensorrtModel(segments, loaded[target.head][0], device)
    sizes = Sizes(target.architecture.vocabulary, bundle.manifest.context, slots, 2)
    return _checked_engine(model, sizes, "target", "use --backend onnxruntime")


def _checked_engine(model: TensorrtModel, sizes: Sizes, name: str, advice: str) -> BoundedEngine:
    """Makes the engine within the limits of the model, and runs the self-check."""
    min_tokens = min(sizes.min_tokens, model.max_tokens)
    sizes = replace(
        sizes,
        min_tokens=min_tokens,
        context=min(sizes.context, model.capacities[-1] - min_tokens + 1),
        capacities=model.capacities,
        free=free_memory(model.device),
    )
    unaliased = sum(len(engine.unaliased) for engine in model.engines)
    if unaliased:
        log.info("%s: TensorRT does not declare that %d caches are in place", name, unaliased)
    runner = TensorrtRunner(model)
    # The check uses an engine of its own, because the final one may still be limited in memory.
    trial = BoundedEngine(runner, sizes, model.max_tokens, model.max_rows)
    self_check(trial, f"the TensorRT engine of {name}", advice)
    return BoundedEngine(runner, sizes, model.max_tokens, model.max_rows)
