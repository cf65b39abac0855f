"""Registry of the back ends. A back end is imported when it is first used."""

from __future__ import annotations

import logging
from importlib import import_module
from types import MappingProxyType
from typing import Any

from edgespec.errors import EngineError, UsageError
from edgespec.manifest import Bundle
from engines.base import Engine
from engines.machine import profiles
from engines.machine.threads import draft_model, tuned_threads
from engines.staged import StagedEngine

log = logging.getLogger("edgespec.engines")

TARGETS = MappingProxyType(
    {
        "onnxruntime": "engines.onnxruntime_backend.engine:open_target",
        "tensorrt": "engines.tensorrt_backend.target:open_target",
        "torch": "engines.torch_backend.target:open_target",
        "torch-fast": "engines.torch_backend.target:open_fast_target",
    }
)
"""Back ends of targets: name to `open_target(bundle, threads)`."""
DEFAULT = "onnxruntime"
FASTER = MappingProxyType({"torch": "torch-fast"})
"""Back ends that are slower because they are exact, and their faster, inexact forms."""


def open_target(bundle: Bundle, backend: str, threads: int) -> StagedEngine:
    """Loads the bundle's target.

    Raises `UsageError` for an unknown back end, and `EngineError` if it cannot run here.
    """
    if backend not in TARGETS:
        raise UsageError(f"there is no back end {backend!r}; choose from {', '.join(TARGETS)}")
    module, _, name = TARGETS[backend].partition(":")
    load: Any = getattr(import_module(module), name)
    engine: StagedEngine = load(bundle, threads)
    return engine


def open_draft(
    bundle: Bundle, profile: str, threads: int, slots: int, *, alone: bool = False
) -> Engine:
    """Loads the bundle's draft for a profile. `threads` 0 takes the number that was measured here
    (`engines/machine/threads.py`), or else the profile's. `alone`: no cloud computes on this
    machine's cores, so the draft's threads may wait awake within a step.

    The profile names the back end. If that is ONNX Runtime and the draft also has TensorRT engines
    that match this machine and its GPU, those are used instead. If they cannot run, the reason is
    logged.

    Raises `UsageError` for an unknown draft, and `EngineError` if it cannot run here.
    """
    draft = bundle.draft(profile)
    threads = threads or tuned_threads(bundle, draft_model(profile))
    if profiles.profile(profile).backend == "tensorrt":
        from engines.tensorrt_backend import target as tensorrt

        return tensorrt.open_draft(bundle, profile, slots)
    if profiles.profile(profile).backend == "llamacpp":
        from engines.llamacpp_backend import engine as llamacpp

        return llamacpp.open_draft(bundle, profile, threads, slots)
    engine = _open_engines(bundle, profile, draft.graph, slots)
    if engine is not None:
        return engine
    from engines.onnxruntime_backend import engine as ort

    return ort.open_draft(bundle, profile, threads, slots, alone=alone)


def _open_engines(bundle: Bundle, profile: str, graph: str, slots: int) -> StagedEngine | None:
    """Loads the TensorRT engines of a draft's graph; None if there are none that run here."""
    if all(engine.graph != graph for engine in bundle.manifest.engines):
        return None
    from engines.tensorrt_backend import target as tensorrt

    if not tensorrt.runs_here(bundle, graph):
        return None
    try:
        return tensorrt.open_draft(bundle, profile, slots)
    except EngineError as error:
        log.warning("ONNX Runtime runs draft/%s instead of its engines: %s", profile, error)
        return None
