"""Numbers of threads that `edgespec doctor --tune` measured for a bundle on this machine.

There is one file for each bundle, below `edgespec.config.cache_folder()`. Without it, with one of
another machine or with a damaged one, a model runs with the number of its profile.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

import msgspec

from edgespec.config import cache_folder
from edgespec.errors import EngineError
from edgespec.manifest import Bundle
from edgespec.publish import replace_file
from engines.machine.doctor import brief


class TunedThreads(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    machine: str
    """Name and usable cores of the machine that measured."""
    threads: dict[str, Annotated[int, msgspec.Meta(ge=1, le=1024)]]
    """Threads by model: `draft/PROFILE` or `target/BACKEND`."""


def draft_model(profile: str) -> str:
    return f"draft/{profile}"


def target_model(backend: str) -> str:
    return f"target/{backend}"


def tuned_threads(bundle: Bundle, model: str) -> int:
    """Returns the measured number of threads of a model; 0 if there is none."""
    return _read(bundle).get(model, 0)


def keep_threads(bundle: Bundle, threads: Mapping[str, int]) -> Path:
    """Keeps numbers of threads by model, beside those of other models. Returns the file.

    Raises `EngineError` if it cannot be written.
    """
    path = _path(bundle)
    kept = TunedThreads(brief(), {**_read(bundle), **threads})
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        replace_file(path, msgspec.json.encode(kept))
    except OSError as error:
        raise EngineError(f"cannot write {path}: {error.strerror or error}") from error
    return path


def _read(bundle: Bundle) -> dict[str, int]:
    try:
        kept = msgspec.json.decode(_path(bundle).read_bytes(), type=TunedThreads)
    except (OSError, msgspec.MsgspecError, UnicodeDecodeError):
        return {}
    return dict(kept.threads) if kept.machine == brief() else {}


def _path(bundle: Bundle) -> Path:
    return cache_folder() / "threads" / f"{bundle.manifest.seal[:32]}.json"
