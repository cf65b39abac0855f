"""The back ends by name, loaded when they are asked for."""

from __future__ import annotations

import logging
from importlib import import_module
from types import MappingProxyType
from typing import Any

from edgespec.errors import EngineError, UsageError
from edgespec.manifest import Bundle
from engines.machine import profiles
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
"""Who can run a target: `open_target(bundle, threads)`."""
DEFAULT = "onnxruntime"
FASTER = MappingProxyType({"torch": "torch-fast"})
"""Of a back end that pays for exactness, the same without."""


def open_target(bundle: Bundle, backend: str, threads: int) -> StagedEngine:
    """The bundle's target. Raises `UsageError` for a back end that there is not, and `EngineError`
    where it cannot run here."""
    if backend not in TARGETS:
        raise UsageError(f"there is no back end {backend!r}; choose from {', '.join(TARGETS)}")
    module, _, name = TARGETS[backend].partition(":")
    load: Any = getattr(import_module(module), name)
    engine: StagedEngine = load(bundle, threads)
    return engine


def open_draft(bundle: Bundle, profile: str, threads: int, slots: int) -> StagedEngine:
    """The bundle's draft for a profile. `threads` 0 is what the profile says.

    TensorRT runs it where the profile says so. Where ONNX Runtime is the profile's, engines are an
    extra: those that match this machine are taken if there is a GPU, and what keeps them from
    running is a line in the log.

    Raises `UsageError` for a draft that there is not, and `EngineError` where it cannot run here.
    """
    draft = bundle.draft(profile)
    if profiles.profile(profile).backend == "tensorrt":
        from engines.tensorrt_backend import target as tensorrt

        return tensorrt.open_draft(bundle, profile, slots)
    engine = _of_engines(bundle, profile, draft.graph, slots)
    if engine is not None:
        return engine
    from engines.onnxruntime_backend import engine as ort

    return ort.open_draft(bundle, profile, threads, slots)


def _of_engines(bundle: Bundle, profile: str, graph: str, slots: int) -> StagedEngine | None:
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
