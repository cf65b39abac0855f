"""`edgespec export`: writing a bundle from checkpoints."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

import msgspec
import onnx_ir as ir
from tokenizers import Tokenizer

from edgespec import __version__
from edgespec.checkpoint import Checkpoint, TokenizerSource
from edgespec.errors import UsageError
from edgespec.manifest import (
    MAIN_OPSET,
    SCHEMA,
    SELF_DRAFT,
    Bundle,
    Calibration,
    DraftInfo,
    File,
    Manifest,
    Origin,
    Precisions,
    Segment,
    Target,
    TokenizerInfo,
)
from edgespec.progress import progress
from edgespec.tokenizer import fingerprint
from engines.machine.profiles import precisions, profile
from export import graph
from export.data_files import DataFiles
from export.gguf_file import write_gguf
from export.heads import FINAL_NORM, ExitHeads, exit_graph, read_heads
from export.publish import describe_all, published_bundle, write_manifest
from export.sources.open import open_checkpoint
from export.weights import WeightFolder, float_type

MAX_CONTEXT_TOKENS = 32768
"""Default limit of the context, for models that allow more."""


@dataclass(frozen=True)
class ExportSettings:
    """Settings of an export."""

    target: str
    """Folder, hub repository or GGUF file."""
    out: Path
    revision: str | None = None
    precisions: Precisions = field(default_factory=lambda: precisions("fp32"))
    opset: int = MAIN_OPSET
    """Opset of the target's graphs; a draft has the opset of its profile."""
    segments: int = 1
    """Number of even segments; ignored if `split` is not empty."""
    split: tuple[int, ...] = ()
    """Layers after which the target is cut, ascending."""
    drafts: tuple[tuple[str, str], ...] = ()
    """(profile, source) pairs; the source `self` means the target."""
    exit_heads: Path | None = None
    """File of trained exit heads; borders without one get the untrained head."""
    calibrations: Mapping[str, Calibration] = field(default_factory=dict)
    """Known figures of drafts, by profile; `calibrate` measures them."""
    context: int = 0
    """Tokens; 0: the model's own, at most `MAX_CONTEXT_TOKENS`."""
    force: bool = False
    """Replace an existing bundle."""


@dataclass(frozen=True)
class _Unfinished:
    """An unfinished bundle."""

    folder: Path
    known: dict[Path, File] = field(default_factory=dict)
    """Files whose checksums were computed while they were written."""


def borders(layers: int, settings: ExportSettings) -> list[int]:
    """Return the segment borders from 0 to `layers`. Raises `UsageError` for an invalid split."""
    if settings.split:
        cuts = list(settings.split)
        if sorted(set(cuts)) != cuts or cuts[0] < 1 or cuts[-1] >= layers:
            raise UsageError(
                f"--split {','.join(map(str, cuts))} must be ascending and between 1 and "
                f"{layers - 1}, as the target has {layers} layers"
            )
        return [0, *cuts, layers]
    if not 1 <= settings.segments <= layers:
        raise UsageError(
            f"--segments {settings.segments} must lie between 1 and the target's {layers} layers"
        )
    return [round(layers * i / settings.segments) for i in range(settings.segments + 1)]


def export(settings: ExportSettings) -> Bundle:
    """Write the bundle and open it. On an edgespec error nothing is left behind."""
    target = open_checkpoint(settings.target, revision=settings.revision)
    if target.kept_ids is not None:
        raise UsageError(
            f"{target.name} has a trimmed vocabulary, so it can only be a draft; export it with "
            f"its target: edgespec export TARGET --draft {settings.target}"
        )
    cuts = borders(target.architecture.layers, settings)
    heads = None if settings.exit_heads is None else read_heads(settings.exit_heads)
    if heads is not None:
        heads.check(target.architecture)
        heads.check_borders(cuts[1:-1])
    context = _context(target, settings)
    mark = fingerprint(Tokenizer.from_str(target.tokenizer.json))
    drafts = [(name, _draft_checkpoint(source, target, mark)) for name, source in settings.drafts]
    with published_bundle(settings.out, settings.force) as folder:
        bundle = _Unfinished(folder)
        written = Manifest(
            schema=SCHEMA,
            made_by=f"edgespec {__version__}",
            context=context,
            text=_write_tokenizer(folder / "tokenizer", target.tokenizer, mark),
            target=_write_target(bundle, target, settings, cuts, context, heads),
            drafts={
                name: _write_draft(
                    bundle, name, checkpoint, context, settings.calibrations.get(name)
                )
                for name, checkpoint in drafts
            },
            files={},
        )
        files = describe_all(folder, bundle.known)
        write_manifest(folder, msgspec.structs.replace(written, files=files))
    return Bundle.open(settings.out)


def _context(target: Checkpoint, settings: ExportSettings) -> int:
    most = target.architecture.context
    if settings.context > most:
        raise UsageError(f"--context {settings.context} exceeds the {most} that {target.name} has")
    return settings.context or min(most, MAX_CONTEXT_TOKENS)


def _draft_checkpoint(source: str, target: Checkpoint, mark: str) -> Checkpoint:
    if source == SELF_DRAFT:
        return target
    draft = open_checkpoint(source, base=target)
    if fingerprint(Tokenizer.from_str(draft.tokenizer.json)) != mark:
        raise UsageError(
            f"{draft.name} and {target.name} have different tokenizers, so their token ids mean "
            "different text; choose a draft of the target's family"
        )
    return draft


def _write_tokenizer(folder: Path, source: TokenizerSource, mark: str) -> TokenizerInfo:
    folder.mkdir()
    (folder / "tokenizer.json").write_text(source.json, encoding="utf-8")
    if source.chat_template is not None:
        (folder / "chat_template.jinja").write_text(source.chat_template, encoding="utf-8")
    return TokenizerInfo(
        fingerprint=mark,
        vocabulary=Tokenizer.from_str(source.json).get_vocab_size(),
        bos=source.bos or "",
        eos=source.eos or "",
        end_ids=sorted(source.end_ids),
    )


@contextmanager
def _weights(
    bundle: _Unfinished, part: str, checkpoint: Checkpoint, chosen: Precisions, label: str
) -> Iterator[WeightFolder]:
    folder = bundle.folder / part
    folder.mkdir(parents=True)
    total = sum(checkpoint.nbytes(name) for name in checkpoint.names())
    apart = chosen.head != chosen.embedding or checkpoint.kept_ids is not None
    if checkpoint.architecture.tied and apart:
        total += checkpoint.nbytes("model.embed_tokens.weight")
    with progress(label, total) as advance, DataFiles(folder) as files:
        yield WeightFolder(folder, files, checkpoint, advance)
        bundle.known.update(files.described())


def _write_target(
    bundle: _Unfinished,
    checkpoint: Checkpoint,
    settings: ExportSettings,
    cuts: Sequence[int],
    context: int,
    heads: ExitHeads | None,
) -> Target:
    chosen, opset = settings.precisions, settings.opset
    folder = bundle.folder / "target"
    with _weights(bundle, "target", checkpoint, chosen, f"target {chosen.layers}") as weights:
        segments = []
        for number, (start, end) in enumerate(pairwise(cuts)):
            file, layers = f"segment-{number:02}", range(start, end)
            model = graph.decoder(weights, chosen, context, layers, file=file, opset=opset)
            ir.save(model, folder / f"{file}.onnx")
            exit_file = ""
            if end < cuts[-1]:
                exit_file = f"target/exit-{number:02}.onnx"
                _write_exit(bundle.folder / exit_file, weights, settings, end, heads)
            segments.append(
                Segment(
                    start=start,
                    end=end,
                    graph=f"target/{file}.onnx",
                    exit=exit_file,
                    calibration=heads.calibration.get(end) if heads else None,
                )
            )
        ir.save(graph.head(weights, chosen, file="head", opset=opset), folder / "head.onnx")
    return Target(
        origin=Origin(name=checkpoint.name, revision=checkpoint.revision),
        architecture=checkpoint.architecture,
        precisions=chosen,
        segments=segments,
        head="target/head.onnx",
        opset=opset,
    )


def _write_exit(
    path: Path, weights: WeightFolder, settings: ExportSettings, layer: int, heads: ExitHeads | None
) -> None:
    chosen = settings.precisions
    norm = weights.vector(FINAL_NORM, float_type(chosen.layers))
    adapter = heads.adapters.get(layer) if heads else None
    shapes = weights.checkpoint.architecture
    model = exit_graph(shapes, chosen, layer, norm, adapter, file=path.stem, opset=settings.opset)
    ir.save(model, path)


def _write_draft(
    bundle: _Unfinished,
    name: str,
    checkpoint: Checkpoint,
    context: int,
    calibration: Calibration | None,
) -> DraftInfo:
    chosen, opset = profile(name).precisions, profile(name).opset
    write = _write_gguf if profile(name).backend == "llamacpp" else _write_graph
    file = write(bundle, name, checkpoint, context)
    return DraftInfo(
        origin=Origin(name=checkpoint.name, revision=checkpoint.revision),
        architecture=checkpoint.architecture,
        precisions=chosen,
        graph=file,
        vocabulary=_head_rows(checkpoint),
        opset=opset,
        calibration=calibration,
    )


def _write_graph(bundle: _Unfinished, name: str, checkpoint: Checkpoint, context: int) -> str:
    """Write a draft's graph and weights; return the graph's path in the bundle."""
    chosen, part = profile(name).precisions, f"draft/{name}"
    with _weights(bundle, part, checkpoint, chosen, f"draft {name}") as weights:
        model = graph.decoder(
            weights, chosen, context, range(checkpoint.architecture.layers),
            file="model", opset=profile(name).opset, with_head=True,
        )  # fmt: skip
        ir.save(model, bundle.folder / part / "model.onnx")
    return f"{part}/model.onnx"


def _write_gguf(bundle: _Unfinished, name: str, checkpoint: Checkpoint, context: int) -> str:
    """Write a draft for llama.cpp; return the file's path in the bundle."""
    file = f"draft/{name}/model.gguf"
    path = bundle.folder / file
    path.parent.mkdir(parents=True)
    write_gguf(path, checkpoint, profile(name).precisions, context, f"draft {name}")
    return file


def _head_rows(checkpoint: Checkpoint) -> int:
    kept = checkpoint.kept_ids
    return checkpoint.architecture.vocabulary if kept is None else len(kept)
