"""The back ends by name, loaded when they are asked for."""

from __future__ import annotations

from importlib import import_module
from types import MappingProxyType
from typing import Any

from edgespec import profiles
from edgespec.errors import UsageError
from edgespec.manifest import Bundle
from engines.staged import StagedEngine

TARGETS = MappingProxyType(
    {
        "onnxruntime": "engines.ort:open_target",
        "tensorrt": "engines.tensorrt:open_target",
        "torch": "engines.torch_backend:open_target",
        "torch-fast": "engines.torch_backend:open_fast_target",
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
    """The bundle's draft for a profile: TensorRT where the profile says so or engines that match
    this machine are in the bundle, else ONNX Runtime. `threads` 0 is what the profile says.

    Raises `UsageError` for a draft that there is not, and `EngineError` where it cannot run here.
    """
    draft = bundle.draft(profile)
    if profiles.profile(profile).backend == "tensorrt" or _has_engines(bundle, draft.graph):
        from engines import tensorrt

        return tensorrt.open_draft(bundle, profile, slots)
    from engines import ort

    return ort.open_draft(bundle, profile, threads, slots)


def _has_engines(bundle: Bundle, graph: str) -> bool:
    if all(engine.graph != graph for engine in bundle.manifest.engines):
        return False
    from engines.tensorrt import runs_here

    return runs_here(bundle, graph)
