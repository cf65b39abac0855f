"""`edgespec build`: engines for the graphs of a bundle, built on the machine that will run them.

The bundle is republished as a whole, what stays being linked, so a reader sees the old one or the
new one. Weights are read where they lie: see `export/half.py`.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import msgspec

from edgespec.errors import BundleError
from edgespec.manifest import MANIFEST, Built, Bundle, File
from edgespec.profiles import profile
from edgespec.progress import Advance, progress
from engines.tensorrt_api import Installation, installation, load, mismatch
from export.engine_plan import (
    BuildSettings,
    Say,
    check_files,
    check_version,
    chosen_graphs,
    hardware_of,
    wanted_engines,
    widened,
)
from export.half import Narrowed
from export.install import link
from export.publish import described, published_bundle, write_manifest
from export.tensorrt import build_engine


def build(bundle: Bundle, settings: BuildSettings, say: Say) -> Bundle:
    """Builds what is missing or out of date, and opens the bundle again. `say` gets sentences.

    Raises:
        UsageError: the profile has no TensorRT, or the bundle no such draft.
        BundleError: a graph or its weights are damaged, or the disk refuses.
        EngineError: TensorRT is not installed, or cannot build a graph; nothing has changed then.
    """
    hardware = hardware_of(settings.profile)
    graphs = list(chosen_graphs(bundle, settings, say))
    trt = load()
    here = installation(trt)
    check_version(settings.profile, hardware, here)
    wanted = [
        engine
        for graph in graphs
        for engine in wanted_engines(bundle, graph, settings, hardware, here)
    ]
    todo = [e for e in wanted if settings.force or not _up_to_date(bundle, e)]
    if not todo:
        say(f"{bundle.folder}: {_engines(len(wanted))} up to date; --force builds again")
        return bundle
    if not here.takes_int8_blocks and widened(bundle, todo):
        say(
            f"{here.name} takes no int8 weights in blocks; they become {settings.floats}, the same "
            "numbers in twice the space"
        )
    check_files(bundle, {path for engine in todo for path in engine.sources})
    started = time.monotonic()
    _publish(trt, bundle, todo, _kept(bundle, graphs, wanted, todo, here))
    bundle = Bundle.open(bundle.folder)
    size = sum(bundle.manifest.files[engine.file].size for engine in todo)
    rest = len(wanted) - len(todo)
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


def _kept(
    bundle: Bundle,
    graphs: Sequence[str],
    wanted: Sequence[Built],
    todo: Sequence[Built],
    here: Installation,
) -> list[Built]:
    """Engines that stay: of other graphs, and of these where they still run here."""
    replaced = {engine.file for engine in todo}
    return [
        engine
        for engine in bundle.manifest.engines
        if engine.file not in replaced
        and (
            engine in wanted
            or engine.graph not in graphs
            or not mismatch(engine, bundle.manifest, here)
        )
    ]


def _publish(trt: Any, bundle: Bundle, todo: Sequence[Built], kept: Sequence[Built]) -> None:
    place = bundle.folder.resolve()
    gone = {engine.file for engine in bundle.manifest.engines} - {engine.file for engine in kept}
    with published_bundle(place, force=True) as folder:
        for path in sorted(place.rglob("*")):
            name = path.relative_to(place).as_posix()
            if path.is_file() and name != MANIFEST and name not in gone:
                link(path, folder / name)
        made = _build_all(trt, folder, todo)
        files = {name: file for name, file in bundle.manifest.files.items() if name not in gone}
        engines = sorted([*kept, *todo], key=lambda engine: (engine.graph, engine.capacity))
        write_manifest(
            folder,
            msgspec.structs.replace(bundle.manifest, files=files | made, engines=engines),
        )


def _tell(advance: Advance, file: str, note: str) -> None:
    advance(0, f"{file}: {note}")


def _build_all(trt: Any, folder: Path, todo: Sequence[Built]) -> dict[str, File]:
    """Builds into `folder`, where the graphs are; the engines' files."""
    int8_blocks = installation(trt).takes_int8_blocks
    workspace = profile(todo[0].profile).workspace_mb << 20
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
                    workspace=workspace,
                    tell=partial(_tell, advance, engine.file),
                )
                made[engine.file] = described(folder / engine.file)
                advance(1)
            narrowed.remove()
    return made
