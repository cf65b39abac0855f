"""`edgespec export`: checkpoints in, a bundle out."""

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
    Draft,
    File,
    Manifest,
    Origin,
    Precisions,
    Segment,
    Target,
    Text,
)
from edgespec.progress import progress
from edgespec.tokenizer import fingerprint
from engines.machine.profiles import precisions, profile
from export import graph
from export.data_files import DataFiles
from export.heads import FINAL_NORM, ExitHeads, exit_graph, read_heads
from export.publish import describe_all, published_bundle, write_manifest
from export.sources.open import open_checkpoint
from export.weights import WeightFolder, float_type

MAX_CONTEXT = 32768
"""Positions that the rotary tables get by default, where the model allows more."""


@dataclass(frozen=True)
class ExportSettings:
    target: str
    """Folder, hub id or GGUF file."""
    out: Path
    revision: str | None = None
    precisions: Precisions = field(default_factory=lambda: precisions("fp32"))
    opset: int = MAIN_OPSET
    """Of the target's graphs; a draft's is its profile's."""
    segments: int = 1
    """Even segments, where `split` is empty."""
    split: tuple[int, ...] = ()
    """Layers to cut after."""
    drafts: tuple[tuple[str, str], ...] = ()
    """(profile, source) pairs; the source `self` is the target."""
    exit_heads: Path | None = None
    """File of trained exit heads, for the borders that it has one for."""
    calibrations: Mapping[str, Calibration] = field(default_factory=dict)
    """Figures of drafts that are known before, by profile; `calibrate` measures them."""
    context: int = 0
    """0: the model's own, at most `MAX_CONTEXT`."""
    force: bool = False
    """Replace a bundle that is already there."""


@dataclass(frozen=True)
class _Unfinished:
    """A bundle that is being written."""

    folder: Path
    known: dict[Path, File] = field(default_factory=dict)
    """Files whose checksums were taken while they were written."""


def borders(layers: int, settings: ExportSettings) -> list[int]:
    """Segment borders from 0 to `layers`. Raises `UsageError` for a split that is none."""
    if settings.split:
        cuts = list(settings.split)
        if sorted(set(cuts)) != cuts or cuts[0] < 1 or cuts[-1] >= layers:
            raise UsageError(
                f"--split {','.join(map(str, cuts))} must rise and lie between 1 and "
                f"{layers - 1}, as the target has {layers} layers"
            )
        return [0, *cuts, layers]
    if not 1 <= settings.segments <= layers:
        raise UsageError(
            f"--segments {settings.segments} must lie between 1 and the target's {layers} layers"
        )
    return [round(layers * i / settings.segments) for i in range(settings.segments + 1)]


def export(settings: ExportSettings) -> Bundle:
    """Writes the bundle and opens it. Raises one of edgespec's errors, leaving nothing behind."""
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
    return settings.context or min(most, MAX_CONTEXT)


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


def _write_tokenizer(folder: Path, source: TokenizerSource, mark: str) -> Text:
    folder.mkdir()
    (folder / "tokenizer.json").write_text(source.json, encoding="utf-8")
    if source.chat_template is not None:
        (folder / "chat_template.jinja").write_text(source.chat_template, encoding="utf-8")
    return Text(
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
    segments = []
    with _weights(bundle, "target", checkpoint, chosen, f"target {chosen.layers}") as weights:
        last = len(cuts) - 2
        for number, (start, end) in enumerate(pairwise(cuts)):
            file, leaving = f"segment-{number:02}", f"exit-{number:02}"
            layers = range(start, end)
            model = graph.decoder(weights, chosen, context, layers, file=file, opset=opset)
            ir.save(model, folder / f"{file}.onnx")
            if number < last:
                norm = weights.vector(FINAL_NORM, float_type(chosen.layers))
                adapter = heads.adapters.get(end) if heads else None
                model = exit_graph(
                    checkpoint.architecture,
                    chosen,
                    end,
                    norm,
                    adapter,
                    file=leaving,
                    opset=opset,
                )
                ir.save(model, folder / f"{leaving}.onnx")
            segments.append(
                Segment(
                    start=start,
                    end=end,
                    graph=f"target/{file}.onnx",
                    exit=f"target/{leaving}.onnx" if number < last else "",
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


def _write_draft(
    bundle: _Unfinished,
    name: str,
    checkpoint: Checkpoint,
    context: int,
    calibration: Calibration | None,
) -> Draft:
    chosen, opset = profile(name).precisions, profile(name).opset
    folder = bundle.folder / "draft" / name
    with _weights(bundle, f"draft/{name}", checkpoint, chosen, f"draft {name}") as weights:
        layers = range(checkpoint.architecture.layers)
        model = graph.decoder(
            weights, chosen, context, layers, file="model", opset=opset, with_head=True
        )
        ir.save(model, folder / "model.onnx")
    return Draft(
        origin=Origin(name=checkpoint.name, revision=checkpoint.revision),
        architecture=checkpoint.architecture,
        precisions=chosen,
        graph=f"draft/{name}/model.onnx",
        vocabulary=_head_rows(checkpoint),
        opset=opset,
        calibration=calibration,
    )


def _head_rows(checkpoint: Checkpoint) -> int:
    kept = checkpoint.kept_ids
    return checkpoint.architecture.vocabulary if kept is None else len(kept)
