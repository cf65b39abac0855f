"""Match of a bundle's engines with this machine, and the command that builds a missing one."""

from __future__ import annotations

import shlex
from collections.abc import Collection

from edgespec.errors import EngineError
from edgespec.manifest import Built, Bundle, HalfFloat, Manifest
from engines.tensorrt_backend.api import Installation


def rebuild_command(bundle: Bundle, graph: str, profile: str) -> str:
    """Returns the command that rebuilds the engines of `graph` for `profile` as they were.

    For a graph of the target, the command rebuilds all engines of the target.
    """
    of_draft = graph.startswith("draft/")
    engines = [
        engine
        for engine in bundle.manifest.engines
        if engine.profile == profile
        and (engine.graph == graph if of_draft else not engine.graph.startswith("draft/"))
    ]
    by_floats: dict[HalfFloat, set[int]] = {}
    for engine in engines:
        by_floats.setdefault(engine.floats, set()).add(engine.capacity)
    commands = [
        _build_command(bundle, graph, profile, floats, capacities)
        for floats, capacities in by_floats.items()
    ]
    return " && ".join(commands) or _build_command(bundle, graph, profile)


def _build_command(
    bundle: Bundle,
    graph: str,
    profile: str,
    floats: HalfFloat | None = None,
    capacities: Collection[int] = (),
) -> str:
    """Returns a shell command; options without a value are left out."""
    draft = graph.split("/")[1] if graph.startswith("draft/") else ""
    words = ["edgespec", "build", str(bundle.folder), "--profile", profile]
    words += ["--graphs", "draft", "--draft", draft] if draft else ["--graphs", "target"]
    words += ["--floats", floats] if floats else []
    for capacity in sorted(set(capacities) - {0}):
        words += ["--capacity", str(capacity)]
    return shlex.join(words)


def mismatch(engine: Built, manifest: Manifest, here: Installation) -> str:
    """Returns why `engine` cannot run here or belongs to another graph; empty if it can run."""
    for path, digest in engine.sources.items():
        if path not in manifest.files or manifest.files[path].sha256 != digest:
            return f"was built from another {path}"
    theirs = Installation(engine.api, engine.version, "", "").name
    if theirs != here.name:
        return f"was built by {theirs}, and this machine has {here.name}"
    if engine.platform != here.platform:
        return f"was built on {engine.platform}, and this is {here.platform}"
    if engine.capability and engine.capability != here.capability:
        there = f"this one is of {here.capability}" if here.capability else "none answers here"
        return f"was built for a GPU of compute capability {engine.capability}, and {there}"
    return ""


def matching_engine(
    bundle: Bundle, graph: str, capacity: int, profile: str, here: Installation
) -> Built:
    """Returns the engine of `graph` for slots of `capacity` positions.

    A graph without a KV cache has one engine, for every capacity. Raises `EngineError`, with the
    reason and the command that builds the engine for `profile`, if none matches.
    """
    of_graph = [engine for engine in bundle.manifest.engines if engine.graph == graph]
    for engine in of_graph:
        if engine.capacity in (0, capacity):
            reason = mismatch(engine, bundle.manifest, here)
            if not reason:
                return engine
            raise EngineError(
                f"{bundle.path(engine.file)} {reason}; build it again: "
                f"{rebuild_command(bundle, graph, engine.profile)}"
            )
    there = ", ".join(str(engine.capacity) for engine in of_graph)
    what = f"for {capacity} positions (there are: {there})" if there else f"of {graph}"
    asked = (of_graph[0].floats, (capacity,)) if of_graph else (None, ())
    raise EngineError(
        f"{bundle.folder} has no engine {what}; build it: "
        f"{_build_command(bundle, graph, profile, *asked)}"
    )
