"""Drafts that `bench shapes` compares: trained by depth, given by the user, or trimmed."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

from bench.lab.builtin import weights_file
from calibration.decoder import load
from calibration.distillation.batches import batch, most_used
from calibration.distillation.distill import DistillSettings, distill, typical
from calibration.distillation.layers import leave_out
from calibration.distillation.training import Schedule
from calibration.quantisation.packed import write_checkpoint
from calibration.target import prepare
from edgespec.manifest import Bundle
from export.bundle import ExportSettings, export
from export.sources.open import open_checkpoint

MAX_TRAINING_HOURS = 100
"""Time limit of training, which the number of steps reaches first."""


@dataclass(frozen=True)
class ShapesSettings:
    work: Path
    """Folder of drafts and bundles; those that exist are used again."""
    corpus: Path | None = None
    tokens: int = 1_000_000
    """Tokens of the corpus to train on."""
    depths: tuple[int, ...] = (4, 8, 12, 16, 20)
    """Layers of the drafts to train."""
    drafts: tuple[tuple[str, Path], ...] = ()
    """(name, folder) of existing drafts to compare with."""
    words: tuple[int, ...] = ()
    """Vocabulary sizes to which each of `drafts` is also trimmed."""
    profiles: tuple[str, ...] = ("cpu-int8", "cpu-int4")
    steps: int = 30
    """Training steps of each draft."""
    rate: float = 5e-4
    """Learning rate."""
    limit: int | None = None
    """Most prompts of each category; None: all."""
    max_tokens: int = 64
    threads: int = 1


def candidate_drafts(settings: ShapesSettings) -> Iterator[tuple[str, Path]]:
    """Name and checkpoint folder of each draft: trained ones by depth, then the user's."""
    source = open_checkpoint(str(weights_file()))
    missing = [d for d in settings.depths if not _folder(settings, d).exists()]
    removal_order = _removal_order(settings, min(missing)) if missing else []
    layers = range(source.architecture.layers)
    for depth in settings.depths:
        folder = _folder(settings, depth)
        if depth in missing:
            removed = removal_order[: len(layers) - depth]
            _train(settings, folder, tuple(layer for layer in layers if layer not in removed))
        yield f"{depth} layers", folder
    for name, folder in settings.drafts:
        yield name, folder
        for words in settings.words:
            yield f"{name}, {words} words", _trimmed(settings, name, folder, words)


def exported(settings: ShapesSettings, name: str, draft: Path) -> Bundle:
    """Bundle with that draft at each profile."""
    folder = settings.work / f"bundle-{name.replace(' ', '-')}"
    if folder.exists():
        return Bundle.open(folder)
    drafts = tuple((profile, str(draft)) for profile in settings.profiles)
    return export(ExportSettings(str(weights_file()), folder, drafts=drafts))


def _folder(settings: ShapesSettings, depth: int) -> Path:
    return settings.work / f"depth-{depth}"


def _removal_order(settings: ShapesSettings, depth: int) -> list[int]:
    """Target layers in the order in which drafts leave them out, down to `depth` layers."""
    source = open_checkpoint(str(weights_file()))
    decoder, cpu = load(source), torch.device("cpu")
    corpus = prepare(source, decoder, settings.corpus, None, settings.tokens, 0, cpu)
    return leave_out(decoder, batch(typical(corpus), cpu, answers=True), depth)


def _train(settings: ShapesSettings, folder: Path, layers: tuple[int, ...]) -> None:
    schedule = Schedule(hours=MAX_TRAINING_HOURS, steps=settings.steps, rate=settings.rate)
    distillation = DistillSettings(
        folder,
        layers=layers,
        corpus=settings.corpus,
        tokens=settings.tokens,
        schedule=schedule,
        device="cpu",
    )
    for _ in distill(open_checkpoint(str(weights_file())), distillation):
        pass


def _trimmed(settings: ShapesSettings, name: str, draft: Path, words: int) -> Path:
    """Copy of `draft` whose vocabulary is the `words` tokens that the target uses most."""
    folder = settings.work / f"{name}-{words}-words"
    if not folder.exists():
        source = open_checkpoint(str(weights_file()))
        model = open_checkpoint(str(draft), base=source)
        corpus = prepare(
            source, load(source), settings.corpus, None, settings.tokens, 0, torch.device("cpu")
        )
        samples = list(corpus.samples(held_out=False))
        blocks = {name: one for name in model.names() if (one := model.blocks(name)) is not None}
        kept = most_used(samples, source.architecture.vocabulary, words)
        write_checkpoint(folder, load(model), model.tokenizer, kept_ids=kept, blocks=blocks)
    return folder
