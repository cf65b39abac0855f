"""`edgespec build`: engines for the graphs of a bundle, built on the machine that will run them.

Engines are built in another folder, then the bundle is republished with them
(`export/publish.py`), so that a reader sees the old or the new bundle. Weights are read in place
(`export/tensorrt/half.py`).
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import msgspec

from edgespec.errors import BundleError
from edgespec.manifest import Built, Bundle, File, Manifest
from edgespec.progress import Advance, progress
from engines.machine.profiles import profile
from engines.tensorrt_backend.api import Installation, installation, load
from engines.tensorrt_backend.matching import mismatch
from export.publish import described, link, republish, staging_folder
from export.tensorrt.builder import build_engine
from export.tensorrt.half import Narrowed
from export.tensorrt.plan import (
    BuildSettings,
    Say,
    check_capacities,
    check_files,
    check_version,
    chosen_graphs,
    hardware_of,
    required_engines,
    widened,
)


def build(bundle: Bundle, settings: BuildSettings, say: Say) -> Bundle:
    """Build missing and outdated engines, and open the bundle again. `say` receives sentences.

    Raises:
        UsageError: the profile has no TensorRT, the bundle has no such draft, or a capacity is
            invalid.
        BundleError: a graph or its weights are damaged or were replaced during the build, or a file
            cannot be written.
        EngineError: TensorRT is not installed or cannot build a graph; the bundle is unchanged.
    """
    hardware = hardware_of(settings.profile)
    graphs = list(chosen_graphs(bundle, settings, say))
    check_capacities(bundle, graphs, settings.capacities, hardware)
    trt = load()
    here = installation(trt)
    check_version(settings.profile, hardware, here)
    required = [
        engine
        for graph in graphs
        for engine in required_engines(bundle, graph, settings, hardware, here)
    ]
    todo = [e for e in required if settings.force or not _up_to_date(bundle, e)]
    if not todo:
        say(f"{bundle.folder}: {_engines(len(required))} up to date; --force builds again")
        return bundle
    if not here.takes_int8_blocks and widened(bundle, todo):
        say(
            f"{here.name} has no int8 weights in blocks; they become {settings.floats}, with the "
            "same values in twice the space"
        )
    check_files(bundle, {path for engine in todo for path in engine.sources})
    started = time.monotonic()
    with staging_folder(bundle) as folder:
        made = _build_all(trt, bundle, folder, todo)
        result = _BuildResult(bundle.folder, graphs, required, todo, made, here)
        bundle = republish(bundle, folder, result.join)
    size = sum(bundle.manifest.files[engine.file].size for engine in todo)
    rest = len(required) - len(todo)
    more = f"; {_engines(rest)} up to date before" if rest else ""
    say(
        f"{bundle.folder}: built {_engines(len(todo))} with {here.name} ({size / 1e6:.0f} MB, "
        f"{time.monotonic() - started:.0f} s){more}"
    )
    return bundle


def _engines(count: int) -> str:
    return f"{count} engine{'' if count == 1 else 's'}"


def _up_to_date(bundle: Bundle, engine: Built) -> bool:
    if engine not in bundle.manifest.engines:
        return False
    try:
        check_files(bundle, {engine.file})
    except BundleError:
        return False
    return True


@dataclass(frozen=True)
class _BuildResult:
    """The result of one run."""

    folder: Path
    graphs: Sequence[str]
    required: Sequence[Built]
    todo: Sequence[Built]
    made: Mapping[str, File]
    here: Installation

    def join(self, now: Manifest) -> Manifest:
        """Add the new engines to the present manifest `now`.

        Raises `BundleError` if a graph or its weights were replaced since they were read.
        """
        for engine in self.todo:
            for path, digest in engine.sources.items():
                if path not in now.files or now.files[path].sha256 != digest:
                    raise BundleError(
                        f"{self.folder / path} was replaced while engines were built from it; "
                        "build them again"
                    )
        kept = self._kept(now)
        gone = {engine.file for engine in now.engines} - {engine.file for engine in kept}
        files = {name: file for name, file in now.files.items() if name not in gone}
        engines = sorted([*kept, *self.todo], key=lambda engine: (engine.graph, engine.capacity))
        return msgspec.structs.replace(now, files={**files, **self.made}, engines=engines)

    def _kept(self, now: Manifest) -> list[Built]:
        """Return the engines to keep: those of other graphs, and those that still run here."""
        replaced = {engine.file for engine in self.todo}
        return [
            engine
            for engine in now.engines
            if engine.file not in replaced
            and (
                engine in self.required
                or engine.graph not in self.graphs
                or not mismatch(engine, now, self.here)
            )
        ]


def _tell(advance: Advance, file: str, note: str) -> None:
    advance(0, f"{file}: {note}")


def _build_all(trt: Any, bundle: Bundle, folder: Path, todo: Sequence[Built]) -> dict[str, File]:
    """Build into `folder`, which has links to the sources during the build. Return the files."""
    sources = {path for engine in todo for path in engine.sources}
    for name in sources:
        link(bundle.folder.resolve() / name, folder / name)
    int8_blocks = installation(trt).takes_int8_blocks
    workspace_bytes = profile(todo[0].profile).workspace_mb << 20
    made = {}
    with progress("engines", len(todo), unit="engines") as advance:
        for graph in dict.fromkeys(engine.graph for engine in todo):
            narrowed = Narrowed(folder / graph, todo[0].floats, int8_blocks=int8_blocks)
            for engine in todo:
                if engine.graph != graph:
                    continue
                build_engine(
                    trt,
                    narrowed.pinned(engine.capacity),
                    folder / engine.file,
                    engine.shapes,
                    name=graph,
                    workspace_bytes=workspace_bytes,
                    tell=partial(_tell, advance, engine.file),
                )
                made[engine.file] = described(folder / engine.file)
                advance(1)
            narrowed.remove()
    for name in sources:
        (folder / name).unlink()
    return made
