"""How much memory the KV caches of a cloud may take."""

from __future__ import annotations

from engines.base import Engine
from engines.machine.system_files import free_bytes
from engines.staged import StagedEngine


def default_limit(engine: StagedEngine | None = None) -> int:
    """Return the default limit in bytes: a quarter of the free memory.

    It is half of the free memory if the engine's caches lie on a GPU. The rest is for activations,
    and for a second copy of one cache tensor while it moves.
    """
    return engine.free() // 2 if engine and engine.free else free_bytes() // 4


def share_of(memory: int, target: Engine, cloud_draft: Engine | None) -> int:
    """Return the bytes of `memory` for the cloud draft, which give both models room for the same
    number of positions."""
    if cloud_draft is None:
        return 0
    draft_size, target_size = cloud_draft.slot_bytes(1), target.slot_bytes(1)
    return memory * draft_size // (draft_size + target_size)


def megabytes(size: int) -> str:
    return f"{size / 1e6:.1f} MB"
