"""Predictions of exit heads, drafts and a quantised target over held-out answers.

All of them read the same text, the target's own (teacher-forced), and predict the token after each
position of an answer. In use, a draft continues the target's text until its first mistake, which
ends the round, so these predictions equal those in use.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from calibration.corpus import Corpus, Sample
from calibration.decoder import Decoder, autocast
from calibration.exit_heads.confidence import Evidence
from edgespec.confidence import log_odds
from edgespec.errors import UsageError
from edgespec.progress import Advance
from engines.base import TOP, Engine, Row, final_choices

_CHUNK_TOKENS = 512
"""Positions for which the logits of the full vocabulary are computed at a time."""
_PREFILL_TOKENS = 128
_MAX_LOG_ODDS = 60.0
"""Limit of log-odds, beyond which a sigmoid is 0 or 1 in float32."""
_MIN_HELD_OUT_TOKENS = 200
_FALLBACK_ONE_IN = 8
"""One sample in about so many is held out where the corpus holds out too few."""


@dataclass
class Collector:
    """Collects predictions, sample by sample."""

    parts: list[tuple[npt.NDArray[np.floating], npt.NDArray[np.int64], Sample, int]] = field(
        default_factory=list
    )

    def add(
        self,
        number: int,
        sample: Sample,
        top_logits: npt.NDArray[np.floating],
        tokens: npt.NDArray[np.int64],
    ) -> None:
        """Add the predictions after each answer position of a sample: [n, TOP] and [n]."""
        odds = np.clip(log_odds(top_logits), -_MAX_LOG_ODDS, _MAX_LOG_ODDS)
        self.parts.append((odds, tokens, sample, number))

    def evidence(self) -> Evidence:
        return Evidence(
            np.concatenate([odds for odds, *_ in self.parts]).astype(np.float32),
            np.concatenate([tokens for _, tokens, *_ in self.parts]),
            np.concatenate([answer(sample) for *_, sample, _ in self.parts]),
            np.concatenate([np.full(len(tokens), number) for _, tokens, _, number in self.parts]),
        )


def answer(sample: Sample) -> npt.NDArray[np.int64]:
    """Return the target's likeliest token after each position of the answer, [n]."""
    return sample.top_ids[sample.answer : len(sample.ids) - 1, 0].astype(np.int64)


def divide(corpus: Corpus, tokens: int, held_out: int, context: int) -> tuple[list[Sample], ...]:
    """Return samples with about `tokens` answer tokens to train on, others with about `held_out`.

    The corpus decides what is held out. If that is too little, about every eighth other sample is
    held out too. Samples end at `context`. Raises `UsageError` for too little text.
    """
    kept = _some(_cut(corpus.samples(held_out=True), context), held_out)
    training = _some(_cut(corpus.samples(held_out=False), context), tokens)
    if len(kept) < 2 or sum(map(answered, kept)) < _MIN_HELD_OUT_TOKENS:
        every = max(2, min(_FALLBACK_ONE_IN, len(training) // 2))
        kept += training[::every]
        training = [sample for number, sample in enumerate(training) if number % every]
    if len(kept) < 2 or not training:
        raise UsageError(
            f"the corpus at {corpus.folder} has too few answers to train on some and measure on "
            "others; write more of them with a larger --tokens"
        )
    return training, kept


def answered(sample: Sample) -> int:
    """Return the number of answer tokens."""
    return max(0, len(sample.ids) - 1 - sample.answer)


def _cut(samples: Iterator[Sample], context: int) -> Iterator[Sample]:
    for sample in samples:
        cut = replace(sample, ids=sample.ids[:context]) if len(sample.ids) > context else sample
        if answered(cut):
            yield cut


def _some(samples: Iterator[Sample], tokens: int) -> list[Sample]:
    chosen: list[Sample] = []
    count = 0
    for sample in samples:
        if count >= tokens:
            break
        chosen.append(sample)
        count += answered(sample)
    return chosen


@torch.no_grad()
def of_exits(
    decoder: Decoder, heads: nn.ModuleDict, samples: Sequence[Sample], advance: Advance
) -> tuple[dict[int, Evidence], dict[int, float]]:
    """Return (evidence by layer, agreement of the untrained head by layer).

    Trained heads are measured in float32, as in a bundle. `advance` is called after every sample.
    """
    collected = {int(layer): Collector() for layer in heads}
    plain = dict.fromkeys(collected, 0)
    for number, sample in enumerate(samples):
        ids = torch.from_numpy(sample.ids[None].astype(np.int64)).to(decoder.output.device)
        _, states = decoder.hidden(ids, keep=collected)
        for layer, collector in collected.items():
            hidden = states[layer][0, sample.answer : len(sample.ids) - 1]
            top_logits, top_ids = top(decoder, heads[str(layer)](hidden))
            collector.add(number, sample, top_logits, top_ids[:, 0])
            with autocast(hidden.device):
                plain[layer] += int((top(decoder, hidden)[1][:, 0] == answer(sample)).sum())
        advance(1)
    count = sum(map(answered, samples))
    return (
        {layer: collector.evidence() for layer, collector in collected.items()},
        {layer: right / count for layer, right in plain.items()},
    )


def top(decoder: Decoder, hidden: Tensor) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]:
    """Return logits and ids of the likeliest tokens, [n, TOP], for states [n, hidden]."""
    logits, ids = [], []
    for start in range(0, len(hidden), _CHUNK_TOKENS):
        part = hidden[start : start + _CHUNK_TOKENS]
        values, places = decoder.logits(decoder.model.norm(part)).topk(
            min(TOP, decoder.architecture.vocabulary)
        )
        logits.append(values.float().cpu().numpy())
        ids.append(places.cpu().numpy())
    return np.concatenate(logits), np.concatenate(ids)


def of_engine(engine: Engine, samples: Sequence[Sample], advance: Advance) -> Evidence:
    """Run a bundle's draft or target. `advance` is called after every sample."""
    collector = Collector()
    for number, sample in enumerate(samples):
        slot, end = engine.open(), len(sample.ids) - 1
        tokens, logits = [], []
        for start in range(0, end, _PREFILL_TOKENS):
            stop = min(end, start + _PREFILL_TOKENS)
            wanted = max(0, stop - max(start, sample.answer))
            row = Row(slot, start, sample.ids[start:stop].tolist(), wanted)
            (choices,) = final_choices(engine, [row])
            if choices is not None:
                tokens.append(choices.argmax)
                logits.append(choices.top_logits)
        engine.close(slot)
        collector.add(number, sample, np.concatenate(logits), np.concatenate(tokens))
        advance(1)
    return collector.evidence()


@torch.no_grad()
def originals(
    decoder: Decoder, samples: Sequence[Sample], advance: Advance
) -> npt.NDArray[np.int64]:
    """Return the checkpoint's arg-max in float32 after each answer position of all samples, [n]."""
    chosen = []
    for sample in samples:
        ids = torch.from_numpy(sample.ids[None].astype(np.int64)).to(decoder.output.device)
        hidden = decoder.hidden(ids)[0][0, sample.answer : len(sample.ids) - 1]
        chosen.append(top(decoder, hidden)[1][:, 0])
        advance(1)
    return np.concatenate(chosen)
