"""edgespec: a draft model on the device, a target model in the cloud, the target's own text.

    import edgespec

    with edgespec.connect("bundle", "tcp://127.0.0.1:5555") as client:
        print(client.complete("The sky is").text)

This package is the vocabulary that both sides share, and imports none of its siblings. The client
is re-exported here and imported when one of its names is first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from edge_runtime.client import AsyncClient as AsyncClient
    from edge_runtime.client import Client as Client
    from edge_runtime.client import connect as connect
    from edge_runtime.client import connect_async as connect_async
    from edge_runtime.completion import AsyncCompletion as AsyncCompletion
    from edge_runtime.completion import Completion as Completion
    from edge_runtime.pieces import Piece as Piece
    from edgespec.config import EdgeSettings as EdgeSettings
    from edgespec.errors import BundleError as BundleError
    from edgespec.errors import EdgespecError as EdgespecError
    from edgespec.errors import EngineError as EngineError
    from edgespec.errors import LinkError as LinkError
    from edgespec.errors import UsageError as UsageError
    from edgespec.telemetry import AnswerStats as AnswerStats

__version__ = "0.2.0"
_HOMES = {
    "AnswerStats": "edgespec.telemetry",
    "AsyncClient": "edge_runtime.client",
    "AsyncCompletion": "edge_runtime.completion",
    "BundleError": "edgespec.errors",
    "Client": "edge_runtime.client",
    "Completion": "edge_runtime.completion",
    "EdgeSettings": "edgespec.config",
    "EdgespecError": "edgespec.errors",
    "EngineError": "edgespec.errors",
    "LinkError": "edgespec.errors",
    "Piece": "edge_runtime.pieces",
    "UsageError": "edgespec.errors",
    "connect": "edge_runtime.client",
    "connect_async": "edge_runtime.client",
}
"""Module of each public name."""


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOMES])
