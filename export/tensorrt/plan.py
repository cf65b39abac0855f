"""Choosing the engines that `edgespec build` makes: graphs, capacities and shapes of calls."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Literal

import msgspec
import onnx_ir as ir

from edgespec.errors import EngineError, UsageError
from edgespec.manifest import MAIN_OPSET, Built, Bundle, HalfFloat, Range, Shapes
from engines.machine.profiles import CLOUD, CUDA, Profile, profile
from engines.tensorrt_backend.api import Installation, version_numbers
from export.operators.plain import MAX_BLOCK_POSITIONS, positions_of_block

Graphs = Literal["draft", "target", "all"]
MAX_VERIFY_TOKENS = 64
"""Most tokens of a row that verifies a draft; longer rows are parts of a prompt."""
Say = Callable[[str], None]


@dataclass(frozen=True)
class BuildSettings:
    """Settings of a build."""

    profile: str
    graphs: Graphs | None = None
    """Graphs to build; None: the draft, or everything for the profile of a cloud."""
    draft: str = ""
    """Profile of the bundle's draft; empty: the draft of `profile`, or else the best or first one
    that this hardware runs."""
    capacities: tuple[int, ...] = ()
    """Slot capacities in tokens; empty: those of the profile, up to the bundle's context."""
    floats: HalfFloat = "fp16"
    force: bool = False
    """Build up-to-date engines again."""


def hardware_of(name: str) -> Profile:
    """Return the profile. Raises `UsageError` if its hardware has no TensorRT."""
    found = profile(name)
    if found.backend != "tensorrt" and CUDA not in found.providers:
        raise UsageError(
            f"profile {name} is for {found.purpose}, which has no TensorRT; "
            "the graphs run there without a build"
        )
    return found


def check_version(name: str, hardware: Profile, here: Installation) -> None:
    """Raise `EngineError` for a TensorRT that is older than the profile's."""
    if here.api == "tensorrt" and here.numbers < version_numbers(hardware.tensorrt):
        raise EngineError(
            f"the engines of {name} need TensorRT {hardware.tensorrt} or newer, and this machine "
            f"has {here.version}; 'edgespec doctor' says which profile fits"
        )


def chosen_graphs(bundle: Bundle, settings: BuildSettings, say: Say) -> Iterator[str]:
    """Yield the graphs of draft and target that the settings ask for. `say` reports choices.

    Raises `UsageError` if the bundle has no such draft, or this copy of it no target.
    """
    graphs = settings.graphs or ("all" if settings.profile == CLOUD else "draft")
    manifest = bundle.manifest
    if graphs != "draft" and not bundle.path(PurePosixPath(manifest.target.head).parts[0]).exists():
        if settings.graphs:
            raise UsageError(
                f"the target was left out of this copy, {bundle.folder}; build its draft with "
                f"--graphs draft, or --graphs {graphs} where the whole bundle is"
            )
        say(f"the target was left out of this copy, {bundle.folder}; building its draft alone")
        graphs = "draft"
    if graphs != "target":
        draft = _draft(bundle, settings, graphs, say)
        if draft:
            yield manifest.drafts[draft].graph
    if graphs != "draft":
        for segment in manifest.target.segments:
            yield from filter(None, (segment.graph, segment.exit))
        yield manifest.target.head


def _draft(bundle: Bundle, settings: BuildSettings, graphs: Graphs, say: Say) -> str:
    """Return the draft's profile; empty if there is no draft and the target is built."""
    name = settings.profile
    there = {name: draft for name, draft in bundle.manifest.drafts.items() if draft.is_graph}
    newest = profile(name).opset
    if settings.draft:
        if not bundle.draft(settings.draft).is_graph:
            raise UsageError(
                f"the draft {settings.draft} is for llama.cpp, and engines are built of ONNX "
                f"graphs; export a draft with --profile {name}"
            )
        if bundle.draft(settings.draft).opset > newest:
            raise UsageError(
                f"the draft {settings.draft} is of opset {there[settings.draft].opset}, and {name} "
                f"takes {newest}; export a draft with --profile {name}"
            )
        return settings.draft
    if name in there:
        return name
    usable = (other for other in (*profile(name).instead, *there) if other in there)
    first = next((other for other in usable if there[other].opset <= newest), "")
    if first:
        say(f"{bundle.folder} has no draft for {name}; building its draft {first}")
    elif graphs == "all":
        say(f"{bundle.folder} has no draft for {name}; building the target alone")
    else:
        raise UsageError(
            f"{bundle.folder} has no draft for {name}; export one with --draft MODEL --profile "
            f"{name}, or build its target with --graphs target"
        )
    return first


def capacities(profile: Profile, context: int) -> tuple[int, ...]:
    """Return the profile's capacities up to the first that holds the context."""
    ascending = sorted(profile.capacities)
    below = [capacity for capacity in ascending if capacity < context]
    return tuple(below + ascending[len(below) : len(below) + 1])


def check_capacities(
    bundle: Bundle, graphs: Sequence[str], chosen: Sequence[int], hardware: Profile
) -> None:
    """Raise `UsageError` for a capacity that these graphs cannot have, or beyond the context."""
    target, context = bundle.manifest.target, bundle.manifest.context
    blocks = target.opset < MAIN_OPSET and any(part.graph in graphs for part in target.segments)
    step = positions_of_block(target.architecture.head_dim) if blocks else 1
    most = max(
        -(-context // MAX_BLOCK_POSITIONS) * MAX_BLOCK_POSITIONS, *capacities(hardware, context)
    )
    for capacity in chosen:
        if not 0 < capacity <= most or capacity % step:
            allowed = f"multiples of {step}" if blocks else "numbers from 1"
            raise UsageError(
                f"--capacity {capacity} does not fit {bundle.folder}, whose context is {context} "
                f"positions: allowed are {allowed} up to {most}"
            )


def calls(batch: Range, tokens: Range, capacity: int = 0) -> list[Shapes]:
    """Return the shapes that an engine is tuned for.

    They are a step of one token, a verify of several tokens in several rows, and a chunk of a
    prompt in one row. Together they allow all rows with up to `MAX_VERIFY_TOKENS` tokens each, and
    the same number of tokens in fewer, longer rows, which bounds scratch memory. Heads compute
    choices for fewer tokens. No row is longer than `capacity`, if it is given.
    """
    (_, rows, most_rows), (_, run, chunk) = batch, tokens
    chunk = min(chunk, capacity or chunk)
    run = min(run, chunk)
    verify = min(chunk, MAX_VERIFY_TOKENS)
    answered = max(chunk, most_rows * min(verify, 4 * run))
    spans = {
        "step": ((1, rows, most_rows), (1, 1, min(2, chunk))),
        "verify": ((1, rows, most_rows), (1, run, verify)),
        "prefill": ((1, 1, max(1, most_rows * verify // chunk)), (1, chunk, chunk)),
    }
    return [
        Shapes(
            batch=many,
            tokens=each,
            selected=(
                1,
                min(many[1] * min(each[1], run), answered),
                min(many[2] * each[2], answered),
            ),
        )
        for many, each in spans.values()
    ]


def required_engines(
    bundle: Bundle, graph: str, settings: BuildSettings, hardware: Profile, here: Installation
) -> Iterator[Built]:
    """Yield the engines of one graph, as the manifest will list them."""
    model = _read(bundle, graph)
    has_cache = any("capacity" in str(value.shape) for value in model.graph.inputs)
    chosen = settings.capacities or capacities(hardware, bundle.manifest.context)
    for capacity in sorted(set(chosen)) if has_cache else (0,):
        suffix = f"-{capacity}.engine" if capacity else ".engine"
        yield Built(
            graph=graph,
            file=graph.removesuffix(".onnx") + suffix,
            capacity=capacity,
            profile=settings.profile,
            sources=_sources(bundle, graph, model),
            api=here.api,
            version=here.version,
            capability=here.tied,
            platform=here.platform,
            floats=settings.floats,
            shapes=calls(hardware.batch, hardware.tokens, capacity),
        )


def _read(bundle: Bundle, graph: str) -> ir.Model:
    check_files(bundle, {graph})
    return ir.load(bundle.path(graph))


def _sources(bundle: Bundle, graph: str, model: ir.Model) -> dict[str, str]:
    folder = PurePosixPath(graph).parent
    tensors = (value.const_value for value in model.graph.initializers.values())
    names = {str(folder / t.location) for t in tensors if isinstance(t, ir.ExternalTensor)}
    return {name: bundle.manifest.files[name].sha256 for name in sorted({graph, *names})}


def widened(bundle: Bundle, engines: Sequence[Built]) -> bool:
    """Return True if one of these graphs has int8 weights."""
    manifest = bundle.manifest
    models = {draft.graph: draft.precisions for draft in manifest.drafts.values()}
    for engine in engines:
        precisions = models.get(engine.graph, manifest.target.precisions)
        if "int8" in (precisions.layers, precisions.head):
            return True
    return False


def check_files(bundle: Bundle, names: set[str]) -> None:
    """Raise `BundleError` for one of these files that is missing or damaged."""
    files = {name: file for name, file in bundle.manifest.files.items() if name in names}
    Bundle(bundle.folder, msgspec.structs.replace(bundle.manifest, files=files)).check(engines=True)
