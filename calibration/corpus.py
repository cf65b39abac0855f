"""The corpus: what the target writes, with its likeliest next tokens at every position.

A draft is judged where the target leads it, so it is trained on the target's own text (on-policy
for the verifier; Zhou et al., "DistillSpec", arXiv 2310.08461) against probabilities that were
there anyway while it was written. Many answers are written at once, each row a state machine:
forced tokens first, then a sampled request, then the answer.

On disk a corpus is a folder of shards, `shard-NNNNN.npz`, each renamed into place whole:

    ids        [n] uint32   all sequences, one after another
    lengths    [s] int64    tokens of each
    learn      [s] int64    the first position whose next token is the target's own
    answer     [s] int64    the first position whose next token belongs to the answer
    top_ids, top_logprobs  [n, TOP] uint32 and float16: the target's, after each position; those
                           after the last of a sequence mean nothing
    next       the number of the first prompt that no shard holds
"""

from __future__ import annotations

import os
import time
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from tokenizers import Tokenizer

from calibration.decoder import Cache, Decoder, autocast
from calibration.prompts import Prompt, Prompts
from edgespec.checkpoint import TokenizerSource
from edgespec.errors import EdgespecError, UsageError
from edgespec.text import render_chat

TOP = 24
"""Likeliest tokens that are kept; what a draft's own choice is compared with."""
HELD_OUT = 32
FLUSH_SECONDS = 20.0
_LEAST_ANSWER = 8
"""Positions that a request must leave to its answer."""
_MARK = "\u2402"
_LOOP = range(1, 17)
"""Periods of text that repeats itself; it teaches nothing new, so the answer ends there."""


@dataclass(frozen=True)
class CorpusSettings:
    rows: int = 128
    """Answers written at once."""
    longest: int = 384
    """Positions of one sequence, prompt and answer together."""
    request: int = 80
    """Most tokens of a request that the target writes itself."""
    sampled: float = 0.25
    """Share of answers drawn at temperature 0.8; the others are greedy."""
    seed: int = 0


@dataclass(frozen=True)
class Sample:
    """One conversation. `top_ids` and `top_logprobs` are [tokens, TOP]."""

    ids: npt.NDArray[np.uint32]
    learn: int
    answer: int
    top_ids: npt.NDArray[np.uint32]
    top_logprobs: npt.NDArray[np.float16]


class Conversation:
    """How a request becomes ids: the target's chat template, or the text itself without one."""

    def __init__(self, source: TokenizerSource) -> None:
        self.tokenizer = Tokenizer.from_str(source.json)
        self.end_ids = frozenset(source.end_ids)
        self._before, self._after = source.bos or "", ""
        if source.chat_template is not None:
            message = [{"role": "user", "content": _MARK}]
            rendered = render_chat(
                source.chat_template, message, bos=source.bos or "", eos=source.eos or ""
            )
            self._before, _, self._after = rendered.partition(_MARK)

    def before(self, text: str) -> tuple[list[int], int]:
        """Ids up to and including `text`, and how many of them come before it."""
        ids = self.tokenizer.encode(self._before + text, add_special_tokens=False).ids
        head = self.tokenizer.encode(self._before, add_special_tokens=False).ids
        return list(ids), len(head)

    def after(self) -> list[int]:
        """Ids between the request and the answer."""
        return list(self.tokenizer.encode(self._after, add_special_tokens=False).ids)


@dataclass
class _Row:
    """One sequence in the making."""

    forced: list[int]
    """Ids still to be fed, last first."""
    asking: bool
    temperature: float
    learn: int
    answer: int = 0
    ids: list[int] = field(default_factory=list)


class Writer:
    """Writes a corpus with `decoder`, which is on its device, in evaluation mode."""

    def __init__(
        self,
        decoder: Decoder,
        conversation: Conversation,
        prompts: Prompts,
        settings: CorpusSettings,
    ) -> None:
        self._decoder = decoder
        self._talk = conversation
        self._prompts = prompts
        self._settings = settings
        self._device = decoder.output.device

    @torch.no_grad()
    def write(self, start: int) -> Iterator[tuple[int, Sample]]:
        """Endless: (number of the next prompt to begin, a finished sequence)."""
        s, shapes = self._settings, self._decoder.architecture
        index = start
        with autocast(self._device):
            cache = Cache(shapes, s.rows, s.longest, self._device)
            top = min(TOP, shapes.vocabulary)
            top_ids = np.zeros((s.rows, s.longest, top), np.uint32)
            top_logprobs = np.zeros((s.rows, s.longest, top), np.float16)
            rows = [self._begin(index + i) for i in range(s.rows)]
            index += s.rows
            random = np.random.default_rng([s.seed, start])
            while True:
                for row in rows:
                    if row.forced:
                        row.ids.append(row.forced.pop())
                fed = torch.tensor([[row.ids[-1]] for row in rows], device=self._device)
                logits = self._decoder.logits(self._decoder.features(fed, cache))[:, 0].float()
                values, best = (logits - logits.logsumexp(-1, keepdim=True)).topk(top)
                logprobs, chosen = values.cpu().numpy(), best.cpu().numpy()
                at = np.array([len(row.ids) - 1 for row in rows])
                everyone = np.arange(s.rows)
                top_ids[everyone, at], top_logprobs[everyone, at] = chosen, logprobs
                noise = random.gumbel(size=logprobs.shape)
                cache.lengths += 1
                for number, row in enumerate(rows):
                    if row.forced:
                        continue
                    place = int(np.argmax(logprobs[number] + row.temperature * noise[number]))
                    if not self._take(row, int(chosen[number, place])):
                        continue
                    n = len(row.ids)
                    yield (
                        index,
                        Sample(
                            np.array(row.ids, np.uint32),
                            row.learn,
                            row.answer,
                            top_ids[number, :n].copy(),
                            top_logprobs[number, :n].copy(),
                        ),
                    )
                    rows[number] = self._begin(index)
                    index += 1
                    cache.lengths[number] = 0

    def _begin(self, index: int) -> _Row:
        s = self._settings
        prompt: Prompt = self._prompts.at(index, s.seed)
        ids, head = self._talk.before(prompt.text)
        room = s.longest - head - len(self._talk.after()) - _LEAST_ANSWER
        if room < 1:
            raise UsageError(
                f"the chat template alone fills the {s.longest} positions of a sequence; "
                "distil a target with a longer context"
            )
        ids = ids[: head + min(room, s.longest // 2)]
        hot = np.random.default_rng([s.seed, index]).random() < s.sampled
        row = _Row([], prompt.open, 0.8 if hot else 0.0, len(ids) - 1)
        if prompt.open:
            row.answer = len(ids) - 1
            after = self._talk.after()
            if not after:  # plain text: all of it is the answer
                row.asking = False
            row.forced = ids[::-1]
        else:
            row.forced = (ids + self._talk.after())[::-1]
            row.learn = row.answer = len(row.forced) - 1
        return row

    def _take(self, row: _Row, token: int) -> bool:
        """Adds the chosen token; whether the sequence is finished."""
        s = self._settings
        asked = len(row.ids) - 1 - row.learn
        if row.asking:
            if token in self._talk.end_ids or asked >= s.request:
                row.asking = False
                row.forced = self._talk.after()[::-1]
                row.answer = len(row.ids) + len(row.forced) - 1
            else:
                row.forced = [token]
            return len(row.ids) + len(row.forced) >= s.longest
        row.ids.append(token)
        done = token in self._talk.end_ids or len(row.ids) >= s.longest
        if not done:
            row.forced, _ = [row.ids.pop()], None
        return done or (len(row.ids) % 16 == 0 and _loops(row.ids[row.answer + 1 :]))


def _loops(ids: Sequence[int]) -> bool:
    """Whether the last 48 ids are one short run over and over."""
    tail = list(ids[-48:])
    return len(tail) == 48 and any(tail[p:] == tail[:-p] for p in _LOOP)


class Corpus:
    """The folder. Shards that are there are whole."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def shards(self) -> list[Path]:
        return sorted(self.folder.glob("shard-*.npz"))

    def next(self) -> int:
        shards = self.shards()
        return int(_load(shards[-1], "next")["next"]) if shards else 0

    def tokens(self) -> int:
        """Tokens that a draft can learn from."""
        return sum(int(_load(path, "learnable")["learnable"]) for path in self.shards())

    def add(self, sequences: Sequence[Sample], following: int) -> None:
        last = self.shards()[-1:]
        number = int(last[0].stem.removeprefix("shard-")) + 1 if last else 0
        path = self.folder / f"shard-{number:05}.npz"
        partial = path.with_suffix(f".{os.getpid()}.partial")
        arrays: dict[str, Any] = {
            "ids": np.concatenate([s.ids for s in sequences]),
            "top_ids": np.concatenate([s.top_ids for s in sequences]),
            "top_logprobs": np.concatenate([s.top_logprobs for s in sequences]),
            "lengths": np.array([len(s.ids) for s in sequences]),
            "learn": np.array([s.learn for s in sequences]),
            "answer": np.array([s.answer for s in sequences]),
            "learnable": sum(len(s.ids) - 1 - s.learn for s in sequences),
            "next": following,
        }
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with partial.open("wb") as file:
                np.savez(file, **arrays)
            partial.rename(path)
        except OSError as error:
            raise EdgespecError(f"writing {path} failed: {error.strerror or error}") from error

    def samples(self, *, held_out: bool) -> Iterator[Sample]:
        """What to train on, or the thirty-second part that is kept for measuring.

        A request's own ids decide, so that one that occurs twice is on one side.
        """
        for path in self.shards():
            for sample in self.read(path):
                request = sample.ids[: sample.answer + 1].tobytes()
                if (zlib.crc32(request) % HELD_OUT == 0) == held_out:
                    yield sample

    def read(self, path: Path) -> Iterator[Sample]:
        arrays = _load(path, "ids", "lengths", "learn", "answer", "top_ids", "top_logprobs")
        ends = np.cumsum(arrays["lengths"])
        for end, length, learn, answer in zip(
            ends, arrays["lengths"], arrays["learn"], arrays["answer"], strict=True
        ):
            cut = slice(int(end - length), int(end))
            yield Sample(
                arrays["ids"][cut],
                int(learn),
                int(answer),
                arrays["top_ids"][cut],
                arrays["top_logprobs"][cut],
            )


def _load(path: Path, *names: str) -> dict[str, npt.NDArray[Any]]:
    """Arrays of a shard. Raises `EdgespecError` for one that is damaged."""
    try:
        with np.load(path) as shard:
            return {name: shard[name] for name in names}
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise EdgespecError(
            f"{path} is damaged ({type(error).__name__}); remove it, and what it held is "
            "written anew"
        ) from error


def extend(corpus: Corpus, writer: Writer, tokens: int) -> Iterator[int]:
    """Writes until the corpus has `tokens` to learn from; yields the count after each shard."""
    have = corpus.tokens()
    finished: list[Sample] = []
    flushed = time.monotonic()
    for following, sequence in writer.write(corpus.next()):
        finished.append(sequence)
        have += len(sequence.ids) - 1 - sequence.learn
        enough = have >= tokens
        if enough or time.monotonic() - flushed > FLUSH_SECONDS:
            corpus.add(finished, following)
            finished, flushed = [], time.monotonic()
            yield have
        if enough:
            return
