"""`edgespec quantise`: a model packed to int4, with int8 where measurement says so.

The text is the target's own (`corpus`). Agreement is the share of held-out answer tokens at which
the model names the target's token, in float32 arithmetic, before and after.
"""

from __future__ import annotations

from collections.abc import Sequence
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
from calibration.quantisation.gptq import batches, quantise, units
from calibration.quantisation.packed import refuse_to_replace, write_packed
from calibration.quantisation.precision import choose_bits, damages, packed_bytes
from calibration.quantisation.recover import recover
from calibration.quantisation.rounding import Bits
from calibration.target import device, identity, prepare, written_by
from edgespec.checkpoint import Checkpoint
from edgespec.errors import UsageError
from edgespec.progress import progress
from edgespec.tokenizer import fingerprint

WRITTEN_TOKENS = 100_000
"""Of text where there is none yet."""
_MEASURED_TOKENS = 4_000
_DAMAGE_SAMPLES = 8
_ROWS = 1024
"""Rows of logits held at once."""


@dataclass(frozen=True)
class QuantiseSettings:
    out: Path
    bits: Bits = 4
    int8_share: float = 0.1
    """Of the weights, at int8 where `bits` is 4."""
    corpus: Path | None = None
    """None: the cache's, which is written first where it is not there."""
    tokens: int = 65_536
    """Of text to quantise on."""
    recovery: int = 60
    """Steps of training the scales and norms afterwards."""
    device: str = "auto"
    seed: int = 0


@dataclass(frozen=True)
class Quantised:
    """Agreements are shares of held-out tokens; `bytes` is what the packed matrices take."""

    agreement_before: float
    agreement: float
    same_token: float
    """How often the model names the token that it named before."""
    bytes: int
    int8: list[str]
    """Matrices at int8, in a model of int4."""


def run(model: Checkpoint, target: Checkpoint | None, settings: QuantiseSettings) -> Quantised:
    """Writes the packed model. `target` is the one that it drafts for: it writes the text where
    there is none, and an embedding that is the target's is left out.

    Raises one of edgespec's errors.
    """
    refuse_to_replace(settings.out)
    decoder = load(model).requires_grad_(False)
    where = device(settings.device)
    corpus = _corpus(target or model, decoder if target is None else load(target), settings)
    text, held_out = _samples(corpus, model, settings.tokens)
    decoder = decoder.to(where)
    before = _choices(decoder, held_out, model, "agreement before")
    bits = _bits(decoder, text, settings)
    with progress("quantising", model.architecture.layers, unit="layers") as advance:
        blocks = quantise(decoder, text, bits, advance=advance)
    if settings.recovery:
        with progress("recovering", settings.recovery, unit="steps") as advance:
            blocks = recover(
                decoder,
                blocks,
                corpus,
                settings.recovery,
                settings.seed,
                kept_out=frozenset(sample.ids.tobytes() for sample in held_out),
                advance=advance,
            )
    after = _choices(decoder, held_out, model, "agreement after")
    truth = np.concatenate([s.top_ids[s.answer : len(s.ids) - 1, 0] for s in _by_length(held_out)])
    wanted = torch.from_numpy(truth.astype(np.int64))
    result = Quantised(
        agreement_before=_share(before == wanted),
        agreement=_share(after == wanted),
        same_token=_share(after == before),
        bytes=packed_bytes(decoder, bits),
        int8=sorted(n for n, b in bits.items() if b == 8) if settings.bits == 4 else [],
    )
    extra = {
        "quantised_from": model.name,
        "quantised": asdict(result) | {"tokens": sum(len(s.ids) for s in text)},
    }
    write_packed(
        settings.out,
        decoder,
        blocks,
        model.tokenizer,
        extra,
        shares_embedding=target is not None and _lends(target, model),
        kept_ids=model.kept_ids,
    )
    click.echo(
        f"{settings.out}: {result.bytes / 1e6:.1f} MB of packed matrices, {len(result.int8)} of "
        f"{len(blocks)} at int8; agreement with the target {result.agreement_before:.3f} before, "
        f"{result.agreement:.3f} after; {result.same_token:.3f} of the tokens are as before",
        err=True,
    )
    return result


def _share(right: Tensor) -> float:
    return round(float(right.float().mean()), 4)


def _corpus(writer: Checkpoint, decoder: Decoder, settings: QuantiseSettings) -> Corpus:
    if settings.corpus is None:
        where = device(settings.device)
        return prepare(writer, decoder, None, None, WRITTEN_TOKENS, settings.seed, where)
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
    """What to quantise on, and what to measure on."""
    text, held_out = (
        _first(islice(corpus.samples(held_out=side), 20_000), most)
        for side, most in ((False, tokens), (True, _MEASURED_TOKENS))
    )
    if not held_out:
        text, held_out = text[: -len(text) // 8], text[-len(text) // 8 :]
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
    """The likeliest token after every answer position, shortest sample first, int64 [n]."""
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
                places = [(x @ output.T).argmax(-1).cpu() for x in torch.split(states, _ROWS)]
                found.append(torch.cat(places))
                advance(1)
    places_of_all = torch.cat(found)
    return places_of_all if kept is None else kept[places_of_all]


def _lends(target: Checkpoint, model: Checkpoint) -> bool:
    """Whether the model's embedding, output matrix and tokenizer are the target's."""
    names = [n for n in ("model.embed_tokens.weight", "lm_head.weight") if n in target.names()]
    marks = [fingerprint(Tokenizer.from_str(one.tokenizer.json)) for one in (target, model)]
    return marks[0] == marks[1] and all(
        name in model.names()
        and model.shape(name) == target.shape(name)
        and _equal(model, target, name)
        for name in names
    )


def _equal(model: Checkpoint, target: Checkpoint, name: str) -> bool:
    """To float16, in which checkpoints are stored."""
    rows = model.shape(name)[0]
    return all(
        np.array_equal(
            model.rows(name, start, start + _ROWS).astype(np.float16),
            target.rows(name, start, start + _ROWS).astype(np.float16),
        )
        for start in range(0, rows, _ROWS)
    )
