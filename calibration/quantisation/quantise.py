"""`edgespec quantise`: packing a model to int4, with int8 for the matrices that need it most.

The text is the target's own (`corpus`). Agreement is the fraction of held-out answer tokens at
which the model's arg-max is the target's token, in float32 arithmetic, before and after.

Work in progress is in `<out>.work`: settings, the rounded matrices, and a checkpoint of the
training that follows. Another run of the same command continues from there.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path

import click
import numpy as np
import torch
from tokenizers import Tokenizer
from torch import Tensor

from calibration.corpus import Corpus, Sample
from calibration.decoder import Decoder, load
from calibration.distillation.losses import Objective
from calibration.distillation.training import Schedule
from calibration.quantisation.gptq import batches, quantise, units
from calibration.quantisation.packed import (
    read_blocks,
    refuse_to_replace,
    write_blocks,
    write_checkpoint,
)
from calibration.quantisation.precision import choose_bits, damages, packed_bytes
from calibration.quantisation.recover import Recovery
from calibration.quantisation.rounding import Bits
from calibration.target import device, identity, prepare, same_settings, written_by
from edgespec.checkpoint import Blocks, Checkpoint
from edgespec.errors import UsageError
from edgespec.progress import progress
from edgespec.tokenizer import fingerprint

WRITTEN_TOKENS = 100_000
"""Least size of the corpus that is written if there is none."""
_WRITTEN_PER_STEP_TOKENS = 1_500
"""Size of that corpus for a step of training, about half of the tokens that a step learns from."""
_MOST_WRITTEN_TOKENS = 1_000_000
LEARNING_RATE = 1.5e-3
"""Learning rate of the training after rounding."""
_ROUNDED = "rounded.safetensors"
_MEASURED_TOKENS = 4_000
_DAMAGE_SAMPLES = 8
_CHUNK_ROWS = 1024
"""Rows of logits or of an embedding held at once."""
_MAX_SAMPLES = 20_000
_FALLBACK_ONE_IN = 8
"""One sample in so many is held out where the corpus holds out none."""


@dataclass(frozen=True)
class QuantiseSettings:
    """Settings of a quantisation."""

    out: Path
    bits: Bits = 4
    int8_share: float = 0.1
    """Fraction of the weights stored as int8 where `bits` is 4."""
    corpus: Path | None = None
    """Folder of a corpus; None: the one in the cache, which is written if it is missing."""
    tokens: int = 65_536
    """Tokens of text to quantise on."""
    recovery: int = 60
    """Most steps of training after rounding; 0: none."""
    hours: float = 1e6
    """Longest time of training."""
    objective: Objective = "mixed"
    device: str = "auto"
    seed: int = 0

    def schedule(self) -> Schedule:
        """The schedule of the training after rounding."""
        return Schedule(
            hours=self.hours, steps=self.recovery, rate=LEARNING_RATE, objective=self.objective
        )


@dataclass(frozen=True)
class Quantised:
    """The result; agreements are fractions of held-out tokens. Stored with the draft."""

    agreement_before: float
    agreement: float
    same_token: float
    """Fraction of tokens at which the arg-max is the same as before."""
    bytes: int
    """Size of the packed matrices."""
    int8: list[str]
    """Matrices stored as int8 in a model of int4."""


def run(model: Checkpoint, target: Checkpoint | None, settings: QuantiseSettings) -> Quantised:
    """Quantise `model`, write it, and print the result.

    `target` is the model that `model` drafts for, or None. It writes the corpus if there is none.
    Weights that are equal to the target's are not stored. Raises one of edgespec's errors.
    """
    refuse_to_replace(settings.out)
    corpus = _corpus(target or model, settings)
    text, held_out = _samples(corpus, model, settings.tokens)
    where = device(settings.device)
    decoder = load(model).requires_grad_(False).to(where)
    before = _choices(decoder, held_out, model, "agreement before")
    work = settings.out.parent / f"{settings.out.name}.work"
    if settings.recovery:
        same_settings(work, "settings.json", _stored_settings(model, settings), f"{work}", "--out")
        blocks = read_blocks(work / _ROUNDED)
        if blocks is None:
            blocks = _rounded(decoder, text, settings)
            write_blocks(work / _ROUNDED, blocks)
            decoder = load(model).requires_grad_(False).to(where)
        kept_out = frozenset(sample.ids.tobytes() for sample in held_out)
        blocks = _recovered(
            Recovery(decoder, blocks, corpus, settings.schedule(), work, settings.seed, kept_out),
            settings.schedule(),
        )
    else:
        blocks = _rounded(decoder, text, settings)
    after = _choices(decoder, held_out, model, "agreement after")
    result = _result(blocks, before, after, held_out, settings)
    extra = {
        "quantised_from": model.name,
        "quantised": asdict(result) | {"tokens": sum(len(s.ids) for s in text)},
    }
    write_checkpoint(
        settings.out,
        decoder,
        model.tokenizer,
        extra,
        shares_embedding=target is not None and _shares_weights(target, model),
        kept_ids=model.kept_ids,
        blocks=blocks,
    )
    shutil.rmtree(work, ignore_errors=True)
    click.echo(_sentence(result, settings.out, len(blocks)), err=True)
    return result


def _rounded(
    decoder: Decoder, text: Sequence[Sample], settings: QuantiseSettings
) -> dict[str, Blocks]:
    """Choose the bits of the matrices and round them, also in `decoder`."""
    bits = _bits(decoder, text, settings)
    with progress("quantising", decoder.architecture.layers, unit="layers") as advance:
        return quantise(decoder, text, bits, advance=advance)


def _recovered(recovery: Recovery, schedule: Schedule) -> dict[str, Blocks]:
    """Train to the end of the schedule. Print a line for each measurement on stderr."""
    done = 0
    with progress("recovering", 1000, unit="per mille") as advance:
        for step in recovery.run():
            over = round(1000 * step.state.over(schedule))
            advance(over - done, f"loss {step.loss:.3f}")
            done = over
            if step.agreement is not None:
                click.echo(step.sentence(), err=True)
    return recovery.settle()


def _result(
    blocks: Mapping[str, Blocks],
    before: Tensor,
    after: Tensor,
    held_out: Sequence[Sample],
    settings: QuantiseSettings,
) -> Quantised:
    truth = np.concatenate([s.top_ids[s.answer : len(s.ids) - 1, 0] for s in _by_length(held_out)])
    expected = torch.from_numpy(truth.astype(np.int64))
    return Quantised(
        agreement_before=_fraction(before == expected),
        agreement=_fraction(after == expected),
        same_token=_fraction(after == before),
        bytes=packed_bytes(blocks),
        int8=sorted(n for n, b in blocks.items() if b.bits == 8) if settings.bits == 4 else [],
    )


def _stored_settings(model: Checkpoint, settings: QuantiseSettings) -> dict[str, object]:
    return {
        "model": identity(model),
        "bits": settings.bits,
        "int8_share": settings.int8_share,
        "corpus": str(settings.corpus.resolve()) if settings.corpus else "",
        "tokens": settings.tokens,
        "seed": settings.seed,
        **asdict(settings.schedule()),
    }


def _sentence(result: Quantised, out: Path, matrices: int) -> str:
    return (
        f"{out}: {result.bytes / 1e6:.1f} MB of packed matrices, {len(result.int8)} of {matrices} "
        f"at int8; agreement with the target {result.agreement_before:.3f} before, "
        f"{result.agreement:.3f} after; {result.same_token:.3f} of the tokens are unchanged"
    )


def _fraction(right: Tensor) -> float:
    return round(float(right.float().mean()), 4)


def _corpus(writer: Checkpoint, settings: QuantiseSettings) -> Corpus:
    if settings.corpus is None:
        where = device(settings.device)
        wanted = min(settings.recovery * _WRITTEN_PER_STEP_TOKENS, _MOST_WRITTEN_TOKENS)
        tokens = max(wanted, WRITTEN_TOKENS)
        return prepare(writer, load(writer), None, None, tokens, settings.seed, where)
    corpus = Corpus(settings.corpus)
    if not corpus.shards():
        raise UsageError(
            f"{settings.corpus} holds no corpus (shard-*.npz); leave --corpus out to have one "
            "written, or pass the folder of one that 'edgespec distill' wrote"
        )
    if written_by(settings.corpus) not in ("", identity(writer)):
        raise UsageError(
            f"{settings.corpus} is the text of another model than {writer.name}; pass the target "
            "that wrote it as --target, or another --corpus"
        )
    return corpus


def _samples(corpus: Corpus, model: Checkpoint, tokens: int) -> tuple[list[Sample], list[Sample]]:
    """Return the samples to quantise on, and those to measure on."""
    text, held_out = (
        _first(islice(corpus.samples(held_out=side), _MAX_SAMPLES), most)
        for side, most in ((False, tokens), (True, _MEASURED_TOKENS))
    )
    if not held_out:
        text, held_out = (
            text[: -len(text) // _FALLBACK_ONE_IN],
            text[-len(text) // _FALLBACK_ONE_IN :],
        )
    if not text or not held_out:
        raise UsageError(f"{corpus.folder} has too few answers to quantise on; write more of it")
    if max(int(sample.ids.max()) for sample in text) >= model.architecture.vocabulary:
        raise UsageError(
            f"{corpus.folder} has token ids that {model.name} does not know; pass the corpus of "
            "its own target"
        )
    return text, held_out


def _first(samples: Sequence[Sample] | islice[Sample], tokens: int) -> list[Sample]:
    taken, total = [], 0
    for sample in samples:
        if total >= tokens:
            break
        if len(sample.ids) - 1 > sample.answer:
            taken.append(sample)
            total += len(sample.ids)
    return taken


def _bits(decoder: Decoder, text: Sequence[Sample], settings: QuantiseSettings) -> dict[str, Bits]:
    found = units(decoder)
    if not found:
        raise UsageError("the model has no matrices whose inputs are a multiple of 32")
    if settings.bits == 8 or settings.int8_share <= 0:
        return {name: settings.bits for unit in found for name in unit.names}
    middle = max((len(text) - _DAMAGE_SAMPLES) // 2, 0)
    alike = _by_length(text)[middle : middle + _DAMAGE_SAMPLES]
    with progress("damage of int4, matrix by matrix", len(found), unit="matrices") as advance:
        measured = damages(decoder, alike, advance=advance)
    return choose_bits(decoder, measured, settings.int8_share)


def _by_length(samples: Sequence[Sample]) -> list[Sample]:
    return sorted(samples, key=lambda sample: len(sample.ids))


@torch.no_grad()
def _choices(decoder: Decoder, samples: Sequence[Sample], model: Checkpoint, label: str) -> Tensor:
    """Return the arg-max after every answer position, shortest sample first, int64 [n]."""
    kept = None if model.kept_ids is None else torch.from_numpy(model.kept_ids)
    output = decoder.output if kept is None else decoder.output[kept.to(decoder.output.device)]
    ordered = _by_length(samples)
    found: list[Tensor] = []
    with progress(label, len(ordered), unit="answers") as advance:
        for part in batches(ordered, decoder.output.device):
            features = decoder.features(part.ids)
            for row in range(len(part.ids)):
                sample = ordered[len(found)]
                states = features[row, sample.answer : len(sample.ids) - 1]
                places = [(x @ output.T).argmax(-1).cpu() for x in torch.split(states, _CHUNK_ROWS)]
                found.append(torch.cat(places))
                advance(1)
    places_of_all = torch.cat(found)
    return places_of_all if kept is None else kept[places_of_all]


def _shares_weights(target: Checkpoint, model: Checkpoint) -> bool:
    """Return True if the model's embedding, output matrix and tokenizer are the target's."""
    names = [n for n in ("model.embed_tokens.weight", "lm_head.weight") if n in target.names()]
    marks = [fingerprint(Tokenizer.from_str(one.tokenizer.json)) for one in (target, model)]
    return marks[0] == marks[1] and all(
        name in model.names()
        and model.shape(name) == target.shape(name)
        and _equal(model, target, name)
        for name in names
    )


def _equal(model: Checkpoint, target: Checkpoint, name: str) -> bool:
    """Return True if a tensor is equal in float16, the type of stored checkpoints."""
    rows = model.shape(name)[0]
    return all(
        np.array_equal(
            model.rows(name, start, start + _CHUNK_ROWS).astype(np.float16),
            target.rows(name, start, start + _CHUNK_ROWS).astype(np.float16),
        )
        for start in range(0, rows, _CHUNK_ROWS)
    )
