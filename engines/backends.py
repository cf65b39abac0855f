"""The back ends by name, loaded when they are asked for."""

from __future__ import annotations

from importlib import import_module
from types import MappingProxyType
from typing import Any

from edgespec.errors import UsageError
from edgespec.manifest import Bundle
from engines.staged import StagedEngine

TARGETS = MappingProxyType({"onnxruntime": "engines.ort:open_target"})
"""Who can run a target: `open_target(bundle, threads)`."""


def open_target(bundle: Bundle, backend: str, threads: int) -> StagedEngine:
    """The bundle's target. Raises `UsageError` for a back end that there is not, and `EngineError`
    where it cannot run here."""
    if backend not in TARGETS:
        raise UsageError(f"there is no back end {backend!r}; choose from {', '.join(TARGETS)}")
    module, _, name = TARGETS[backend].partition(":")
    load: Any = getattr(import_module(module), name)
    engine: StagedEngine = load(bundle, threads)
    return engine
