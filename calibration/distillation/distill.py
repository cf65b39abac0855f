"""`edgespec distill`: a draft for a target, made of some of its own layers.

The draft keeps the target's embedding and output matrix, which stay as they are, and starts from
the layers that are missed least (`layers`). It is then trained for accepted tokens a round
(`losses`) on text that the target writes itself (`corpus`, `prompts`).

Work in progress stands in `<out>.work`: settings, the choice of layers, and the training's own
checkpoint. The same command again goes on from there; it is removed when the draft is written.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import click
import torch

from calibration.corpus import Corpus, Sample
from calibration.decoder import Decoder, load
from calibration.distillation.batches import batch, most_used
from calibration.distillation.layers import choose_layers
from calibration.distillation.training import News, Schedule, Trainer
from calibration.prompts import read_prompts
from calibration.quantisation.packed import refuse_to_replace, write_checkpoint
from calibration.target import device, identity, prepare, same_settings
from edgespec.checkpoint import Checkpoint
from edgespec.errors import UsageError
from edgespec.progress import progress

DEPTH = 0.6
"""Share of the target's layers that a draft has by default; see docs/pair.md for the trade."""
_CHOICE_SAMPLES = 12
_CHOICE_TOKENS = range(60, 161)
"""Answers that the choice of layers is measured on: enough context, little padding."""


@dataclass(frozen=True)
class DistillSettings:
    out: Path
    depth: int = 0
    """Layers of the draft; 0: `DEPTH` of the target's."""
    layers: tuple[int, ...] = ()
    """The target's layers to start from, counted from 0; empty: chosen by measurement."""
    vocabulary: int = 0
    """Output rows of a trimmed draft, the words used most; 0: all."""
    corpus: Path | None = None
    prompts: Path | None = None
    tokens: int = 1_000_000
    """Of the target's own text."""
    schedule: Schedule = field(default_factory=Schedule)
    device: str = "auto"
    seed: int = 0


@dataclass(frozen=True)
class Distilled:
    layers: list[int]
    before: float
    """Held-out agreement of the layers as they were taken."""
    agreement: float
    """Held-out agreement of the draft."""
    trained_tokens: int


def distill(target: Checkpoint, settings: DistillSettings) -> Iterator[News | Distilled]:
    """Yields news as it goes, and what came of it last. Raises one of edgespec's errors."""
    depth = _depth(target, settings)
    refuse_to_replace(settings.out)
    if settings.prompts:
        read_prompts(settings.prompts)  # before anything is begun
    work = settings.out.parent / f"{settings.out.name}.work"
    where = device(settings.device)
    same_settings(work, "settings.json", _begun_with(target, settings), f"{work}", "--out")
    whole = load(target)
    corpus = prepare(
        target, whole, settings.corpus, settings.prompts, settings.tokens, settings.seed, where
    )
    layers = list(settings.layers) or _chosen_layers(work, whole.to(where), corpus, depth)
    draft = load(target, layers).to(where)
    del whole
    trainer = Trainer(draft, corpus, settings.schedule, work, settings.seed)
    kept = None
    if settings.vocabulary:
        samples = list(corpus.samples(held_out=False))
        kept = most_used(samples, target.architecture.vocabulary, settings.vocabulary)
        trainer.kept = torch.from_numpy(kept).to(where)
    trainer.resume()
    before, now = 0.0, 0.0
    with progress("training", 1000, unit="per mille") as advance:
        done = 0
        for news in trainer.run():
            if news.agreement is not None:
                now = news.agreement
                before = now if news.state.step == 0 else before
            over = round(1000 * news.state.over(settings.schedule))
            advance(over - done, f"loss {news.loss:.3f}, held-out agreement {now:.3f}")
            done = over
            yield news
    result = Distilled(layers, before, now, trainer.state.tokens)
    extra = {
        "distilled_from": target.name,
        "layers": layers,
        "held_out_agreement": round(now, 4),
        "trained_tokens": trainer.state.tokens,
        "corpus_tokens": corpus.tokens(),
        "objective": settings.schedule.objective,
        "trained_on": where.type,
    }
    write_checkpoint(settings.out, draft, target.tokenizer, extra, kept_ids=kept)
    shutil.rmtree(work, ignore_errors=True)
    yield result


def run(target: Checkpoint, settings: DistillSettings) -> None:
    """`distill`, told on stderr: a line for each measurement, and what to do with the draft."""
    for news in distill(target, settings):
        if isinstance(news, Distilled):
            click.echo(
                f"{settings.out}: layers {','.join(map(str, news.layers))} of {target.name}, "
                f"held-out agreement {news.agreement:.3f} after {news.trained_tokens} tokens",
                err=True,
            )
            click.echo(
                f"next: edgespec quantise {settings.out} --target TARGET "
                f"--out {settings.out}-int4, then edgespec export TARGET "
                f"--draft {settings.out}-int4 --profile cpu-int4",
                err=True,
            )
        elif news.agreement is not None:
            minutes = news.state.seconds / 60
            click.echo(
                f"{minutes:.1f} min, step {news.state.step}, {news.state.tokens} tokens: "
                f"loss {news.loss:.3f}, held-out agreement {news.agreement:.3f}",
                err=True,
            )


def _depth(target: Checkpoint, settings: DistillSettings) -> int:
    have = target.architecture.layers
    if not 0 <= settings.vocabulary <= target.architecture.vocabulary:
        raise UsageError(
            f"--vocabulary {settings.vocabulary} is more than the "
            f"{target.architecture.vocabulary} words that {target.name} has"
        )
    if settings.layers:
        if settings.depth not in (0, len(settings.layers)):
            raise UsageError("--layers and --depth name different numbers; pass one of them")
        chosen = list(settings.layers)
        if chosen != sorted(set(chosen)) or chosen[0] < 0 or chosen[-1] >= have:
            raise UsageError(
                f"--layers {','.join(map(str, chosen))} must rise and lie between 0 and "
                f"{have - 1}, as the target has {have} layers"
            )
        return len(chosen)
    depth = settings.depth or max(1, round(DEPTH * have))
    if depth > have:
        raise UsageError(
            f"--depth {depth} is more than the {have} layers that {target.name} has; "
            f"choose between 1 and {have}"
        )
    return depth


def _begun_with(target: Checkpoint, settings: DistillSettings) -> dict[str, object]:
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
            path.unlink()  # damaged; they are chosen anew
    device = target.output.device
    layers = choose_layers(target, batch(typical(corpus), device, answers=True), depth)
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(layers), encoding="utf-8")
    partial.rename(path)
    return layers


def typical(corpus: Corpus) -> Sequence[Sample]:
    samples = list(corpus.samples(held_out=False))
    typical = [s for s in samples if len(s.ids) - s.answer in _CHOICE_TOKENS]
    return (typical or samples)[:_CHOICE_SAMPLES]
