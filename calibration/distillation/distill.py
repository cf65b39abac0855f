"""`edgespec distill`: making a draft from some of the target's own layers.

The draft keeps the target's embedding and output matrix unchanged, and starts from the layers that
matter most (`layers`). It is then trained for accepted tokens per round (`losses`) on text that the
target writes itself (`corpus`, `prompts`).

Work in progress is in `<out>.work`: settings, the choice of layers, and a checkpoint of the
training. Another run of the same command continues from there. The folder is removed when the draft
is written.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Generator, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import click
import torch

from calibration.corpus import Corpus, Sample
from calibration.decoder import Decoder, load
from calibration.distillation.batches import batch, most_used
from calibration.distillation.layers import choose_layers
from calibration.distillation.training import Schedule, Trainer, TrainingStep
from calibration.prompts import read_prompts
from calibration.quantisation.packed import refuse_to_replace, write_checkpoint
from calibration.target import device, identity, prepare, same_settings
from edgespec.checkpoint import Checkpoint
from edgespec.errors import UsageError
from edgespec.progress import progress

DEPTH_RATIO = 0.6
"""Default fraction of the target's layers in a draft (docs/pair.md has measurements)."""
_CHOICE_SAMPLES = 12
_CHOICE_TOKENS = range(60, 161)
"""Lengths of answers for the choice of layers: enough context, little padding."""


@dataclass(frozen=True)
class DistillSettings:
    """Settings of a distillation."""

    out: Path
    depth: int = 0
    """Layers of the draft; 0: `DEPTH_RATIO` of the target's."""
    layers: tuple[int, ...] = ()
    """The target's layers to start from, counted from 0; empty: chosen by measurement."""
    vocabulary: int = 0
    """Number of output rows of a trimmed draft, the most used tokens; 0: all."""
    corpus: Path | None = None
    prompts: Path | None = None
    tokens: int = 1_000_000
    """Tokens of the corpus."""
    schedule: Schedule = field(default_factory=Schedule)
    device: str = "auto"
    seed: int = 0


@dataclass(frozen=True)
class Distilled:
    """The result of a run."""

    layers: list[int]
    before: float
    """Held-out agreement of the layers before training."""
    agreement: float
    """Held-out agreement of the draft."""
    trained_tokens: int


def distill(target: Checkpoint, settings: DistillSettings) -> Iterator[TrainingStep | Distilled]:
    """Yield every training step, and the result last. Raises one of edgespec's errors."""
    depth = _depth(target, settings)
    refuse_to_replace(settings.out)
    if settings.prompts:
        read_prompts(settings.prompts)  # report errors before any work
    work = settings.out.parent / f"{settings.out.name}.work"
    where = device(settings.device)
    same_settings(work, "settings.json", _stored_settings(target, settings), f"{work}", "--out")
    decoder = load(target)
    corpus = prepare(
        target, decoder, settings.corpus, settings.prompts, settings.tokens, settings.seed, where
    )
    layers = list(settings.layers) or _chosen_layers(work, decoder.to(where), corpus, depth)
    draft = load(target, layers).to(where)
    del decoder
    trainer = Trainer(draft, corpus, settings.schedule, work, settings.seed)
    kept = None
    if settings.vocabulary:
        samples = list(corpus.samples(held_out=False))
        kept = most_used(samples, target.architecture.vocabulary, settings.vocabulary)
        trainer.kept = torch.from_numpy(kept).to(where)
    trainer.resume()
    agreements = yield from _train(trainer, settings.schedule)
    result = Distilled(layers, *agreements, trainer.state.tokens)
    extra = {
        "distilled_from": target.name,
        "layers": layers,
        "held_out_agreement": round(result.agreement, 4),
        "trained_tokens": result.trained_tokens,
        "corpus_tokens": corpus.tokens(),
        "objective": settings.schedule.objective,
        "trained_on": where.type,
    }
    write_checkpoint(settings.out, draft, target.tokenizer, extra, kept_ids=kept)
    shutil.rmtree(work, ignore_errors=True)
    yield result


def _train(
    trainer: Trainer, schedule: Schedule
) -> Generator[TrainingStep, None, tuple[float, float]]:
    """Run the training. Return the held-out agreement before it (0 if resumed) and after it."""
    before, now, done = 0.0, 0.0, 0
    with progress("training", 1000, unit="per mille") as advance:
        for step in trainer.run():
            if step.agreement is not None:
                now = step.agreement
                before = now if step.state.step == 0 else before
            over = round(1000 * step.state.over(schedule))
            advance(over - done, f"loss {step.loss:.3f}, held-out agreement {now:.3f}")
            done = over
            yield step
    return before, now


def run(target: Checkpoint, settings: DistillSettings) -> None:
    """Run `distill` and print a line for each measurement and the next commands on stderr."""
    for step in distill(target, settings):
        if isinstance(step, Distilled):
            click.echo(
                f"{settings.out}: layers {','.join(map(str, step.layers))} of {target.name}, "
                f"held-out agreement {step.agreement:.3f} after {step.trained_tokens} tokens",
                err=True,
            )
            click.echo(
                f"next: edgespec quantise {settings.out} --target TARGET "
                f"--out {settings.out}-int4, then edgespec export TARGET "
                f"--draft {settings.out}-int4 --profile cpu-int4",
                err=True,
            )
        elif step.agreement is not None:
            click.echo(step.sentence(), err=True)


def _depth(target: Checkpoint, settings: DistillSettings) -> int:
    have = target.architecture.layers
    if not 0 <= settings.vocabulary <= target.architecture.vocabulary:
        raise UsageError(
            f"--vocabulary {settings.vocabulary} is more than the "
            f"{target.architecture.vocabulary} tokens that {target.name} has"
        )
    if settings.layers:
        if settings.depth not in (0, len(settings.layers)):
            raise UsageError("--layers and --depth name different numbers; pass one of them")
        chosen = list(settings.layers)
        if chosen != sorted(set(chosen)) or chosen[0] < 0 or chosen[-1] >= have:
            raise UsageError(
                f"--layers {','.join(map(str, chosen))} must be ascending and between 0 and "
                f"{have - 1}, as the target has {have} layers"
            )
        return len(chosen)
    depth = settings.depth or max(1, round(DEPTH_RATIO * have))
    if depth > have:
        raise UsageError(
            f"--depth {depth} is more than the {have} layers that {target.name} has; "
            f"choose between 1 and {have}"
        )
    return depth


def _stored_settings(target: Checkpoint, settings: DistillSettings) -> dict[str, object]:
    return {
        "target": identity(target),
        "depth": settings.depth,
        "layers": settings.layers,
        "vocabulary": settings.vocabulary,
        "tokens": settings.tokens,
        "seed": settings.seed,
        "corpus": str(settings.corpus.resolve()) if settings.corpus else "",
        "prompts": str(settings.prompts.resolve()) if settings.prompts else "",
        **asdict(settings.schedule),
    }


def _chosen_layers(work: Path, target: Decoder, corpus: Corpus, depth: int) -> list[int]:
    path = work / "layers.json"
    if path.is_file():
        try:
            return [int(layer) for layer in json.loads(path.read_text(encoding="utf-8"))]
        except (ValueError, TypeError):
            path.unlink()  # damaged; choose again
    device = target.output.device
    layers = choose_layers(target, batch(typical(corpus), device, answers=True), depth)
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(layers), encoding="utf-8")
    partial.rename(path)
    return layers


def typical(corpus: Corpus) -> Sequence[Sample]:
    """Return samples with answers of medium length, for the choice of layers."""
    samples = list(corpus.samples(held_out=False))
    typical = [s for s in samples if len(s.ids) - s.answer in _CHOICE_TOKENS]
    return (typical or samples)[:_CHOICE_SAMPLES]
