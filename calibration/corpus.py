"""The corpus: text that the target writes, with its likeliest next tokens at every position.

A draft is used on the target's text, so it is trained on the target's own text (on-policy for the
verifier; Zhou et al., "DistillSpec", arXiv 2310.08461). The probabilities are a by-product of
writing. Many answers are written at once. Each row is a state machine: first prescribed tokens,
then a sampled request, then the answer.

A corpus on disk is a folder of shards, `shard-NNNNN.npz`, each renamed into place when complete:

    ids        [n] uint32   all sequences, one after another
    lengths    [s] int64    tokens of each sequence
    learn      [s] int64    first position whose next token was chosen by the target
    answer     [s] int64    first position whose next token belongs to the answer
    top_ids, top_logprobs  [n, TOP_TOKENS] uint32 and float16: the target's likeliest tokens after
                           each position; undefined after the last position of a sequence
    learnable  []           number of tokens that a draft can learn from
    next       []           number of the first prompt that is in no shard
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

from calibration.decoder import AnswerCache, Decoder, autocast
from calibration.prompts import Prompt, Prompts
from edgespec.chat_template import render_chat
from edgespec.checkpoint import TokenizerSource
from edgespec.errors import EdgespecError, UsageError

TOP_TOKENS = 24
"""Likeliest tokens that are stored for each position."""
HELD_OUT_ONE_IN = 32
"""One request in so many is kept for measuring."""
FLUSH_S = 20.0
"""Seconds of writing after which a shard is stored."""
_MIN_ANSWER_TOKENS = 8
"""Positions that a request must leave for its answer."""
_HOT_TEMPERATURE = 0.8
_PLACEHOLDER = "\u2402"
_LOOP_TOKENS = range(1, 17)
"""Periods of repetitive text. A repetition teaches nothing new, so the answer ends there."""
_LOOP_TAIL_TOKENS = 48
_LOOP_CHECK_TOKENS = 16
"""Tokens between two checks for repetition."""


@dataclass(frozen=True)
class CorpusSettings:
    """Settings of the writer. Their names are stored with a corpus."""

    rows: int = 128
    """Answers written at once."""
    longest: int = 384
    """Most tokens of one sequence, prompt and answer together."""
    request: int = 80
    """Most tokens of a request that the target writes itself."""
    sampled: float = 0.25
    """Fraction of answers sampled at temperature 0.8; the others are greedy."""
    seed: int = 0


@dataclass(frozen=True)
class Sample:
    """One conversation. `top_ids` and `top_logprobs` are [tokens, TOP_TOKENS]."""

    ids: npt.NDArray[np.uint32]
    learn: int
    """First position whose next token was chosen by the target."""
    answer: int
    """First position whose next token belongs to the answer."""
    top_ids: npt.NDArray[np.uint32]
    top_logprobs: npt.NDArray[np.float16]


class Conversation:
    """Encoding of requests, by the target's chat template or as plain text without one."""

    def __init__(self, source: TokenizerSource) -> None:
        self.tokenizer = Tokenizer.from_str(source.json)
        self.end_ids = frozenset(source.end_ids)
        self._before, self._after = source.bos or "", ""
        if source.chat_template is not None:
            message = [{"role": "user", "content": _PLACEHOLDER}]
            rendered = render_chat(
                source.chat_template, message, bos=source.bos or "", eos=source.eos or ""
            )
            self._before, _, self._after = rendered.partition(_PLACEHOLDER)

    def before(self, text: str) -> tuple[list[int], int]:
        """Return the ids up to and including `text`, and the number of ids before it."""
        ids = self.tokenizer.encode(self._before + text, add_special_tokens=False).ids
        head = self.tokenizer.encode(self._before, add_special_tokens=False).ids
        return list(ids), len(head)

    def after(self) -> list[int]:
        """Return the ids between the request and the answer."""
        return list(self.tokenizer.encode(self._after, add_special_tokens=False).ids)


@dataclass
class _Row:
    """One unfinished sequence."""

    prescribed: list[int]
    """Ids that follow regardless of the target's choice, last first."""
    asking: bool
    """True while the target writes the request."""
    temperature: float
    learn: int
    answer: int = 0
    ids: list[int] = field(default_factory=list)


class _Scores:
    """The likeliest tokens after each position of all rows, [rows, longest, top]."""

    def __init__(self, settings: CorpusSettings, top: int) -> None:
        shape = (settings.rows, settings.longest, top)
        self.ids = np.zeros(shape, np.uint32)
        self.logprobs = np.zeros(shape, np.float16)

    def sample(self, number: int, row: _Row) -> Sample:
        tokens = slice(len(row.ids))
        return Sample(
            np.array(row.ids, np.uint32),
            row.learn,
            row.answer,
            self.ids[number, tokens].copy(),
            self.logprobs[number, tokens].copy(),
        )


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
        self._conversation = conversation
        self._prompts = prompts
        self._settings = settings
        self._device = decoder.output.device

    @torch.no_grad()
    def write(self, start: int) -> Iterator[tuple[int, Sample]]:
        """Yield without end (number of the next prompt to begin, a finished sequence)."""
        s, shapes = self._settings, self._decoder.architecture
        following = start + s.rows
        with autocast(self._device):
            cache = AnswerCache(shapes, s.rows, s.longest, self._device)
            top = min(TOP_TOKENS, shapes.vocabulary)
            scores, every = _Scores(s, top), np.arange(s.rows)
            rows = [self._begin(start + number) for number in range(s.rows)]
            random = np.random.default_rng([s.seed, start])
            while True:
                for row in rows:
                    if row.prescribed:
                        row.ids.append(row.prescribed.pop())
                chosen, logprobs = self._likeliest([row.ids[-1] for row in rows], cache, top)
                at = np.array([len(row.ids) - 1 for row in rows])
                scores.ids[every, at], scores.logprobs[every, at] = chosen, logprobs
                noise = random.gumbel(size=logprobs.shape)
                cache.lengths += 1
                for number, row in enumerate(rows):
                    if row.prescribed:
                        continue
                    place = int(np.argmax(logprobs[number] + row.temperature * noise[number]))
                    if self._take(row, int(chosen[number, place])):
                        yield following, scores.sample(number, row)
                        rows[number] = self._begin(following)
                        following += 1
                        cache.lengths[number] = 0

    def _likeliest(
        self, ids: Sequence[int], cache: AnswerCache, top: int
    ) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]]:
        """Run one token per row. Return likeliest next tokens and logprobs, each [rows, top]."""
        fed = torch.tensor([[token] for token in ids], device=self._device)
        logits = self._decoder.logits(self._decoder.features(fed, cache))[:, 0].float()
        values, best = (logits - logits.logsumexp(-1, keepdim=True)).topk(top)
        logprobs = values.cpu().numpy()
        return best.cpu().numpy(), logprobs

    def _begin(self, index: int) -> _Row:
        s = self._settings
        prompt: Prompt = self._prompts.at(index, s.seed)
        ids, head = self._conversation.before(prompt.text)
        room = s.longest - head - len(self._conversation.after()) - _MIN_ANSWER_TOKENS
        if room < 1:
            raise UsageError(
                f"the chat template alone fills the {s.longest} positions of a sequence; "
                "distil a target with a longer context"
            )
        ids = ids[: head + min(room, s.longest // 2)]
        hot = np.random.default_rng([s.seed, index]).random() < s.sampled
        row = _Row([], prompt.open, _HOT_TEMPERATURE if hot else 0.0, len(ids) - 1)
        if prompt.open:
            row.answer = len(ids) - 1
            after = self._conversation.after()
            if not after:  # plain text is all answer
                row.asking = False
            row.prescribed = ids[::-1]
        else:
            row.prescribed = (ids + self._conversation.after())[::-1]
            row.learn = row.answer = len(row.prescribed) - 1
        return row

    def _take(self, row: _Row, token: int) -> bool:
        """Add the chosen token. Return True if the sequence is finished."""
        s = self._settings
        asked = len(row.ids) - 1 - row.learn
        if row.asking:
            if token in self._conversation.end_ids or asked >= s.request:
                row.asking = False
                row.prescribed = self._conversation.after()[::-1]
                row.answer = len(row.ids) + len(row.prescribed) - 1
            else:
                row.prescribed = [token]
            return len(row.ids) + len(row.prescribed) >= s.longest
        row.ids.append(token)
        done = token in self._conversation.end_ids or len(row.ids) >= s.longest
        if not done:
            row.prescribed = [row.ids.pop()]
        check = len(row.ids) % _LOOP_CHECK_TOKENS == 0
        return done or (check and _loops(row.ids[row.answer + 1 :]))


def _loops(ids: Sequence[int]) -> bool:
    """Return True if the last ids repeat one short run."""
    tail = list(ids[-_LOOP_TAIL_TOKENS:])
    full = len(tail) == _LOOP_TAIL_TOKENS
    return full and any(tail[p:] == tail[:-p] for p in _LOOP_TOKENS)


class Corpus:
    """A corpus on disk. Every shard in the folder is complete."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def shards(self) -> list[Path]:
        return sorted(self.folder.glob("shard-*.npz"))

    def next(self) -> int:
        """Return the number of the next prompt to begin."""
        shards = self.shards()
        return int(_load(shards[-1], "next")["next"]) if shards else 0

    def tokens(self) -> int:
        """Return the number of tokens that a draft can learn from."""
        return sum(int(_load(path, "learnable")["learnable"]) for path in self.shards())

    def add(self, sequences: Sequence[Sample], following: int) -> None:
        """Store a shard. Raises `EdgespecError` if the disk refuses."""
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
        """Yield the samples to train on, or the fraction that is held out for measuring.

        A hash of the request decides, so that equal requests are on the same side.
        """
        for path in self.shards():
            for sample in self.read(path):
                request = sample.ids[: sample.answer + 1].tobytes()
                if (zlib.crc32(request) % HELD_OUT_ONE_IN == 0) == held_out:
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
    """Read arrays of a shard. Raises `EdgespecError` for a damaged one."""
    try:
        with np.load(path) as shard:
            return {name: shard[name] for name in names}
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise EdgespecError(
            f"{path} is damaged ({type(error).__name__}); remove it, and its text is written again"
        ) from error


def extend(corpus: Corpus, writer: Writer, tokens: int) -> Iterator[int]:
    """Write until the corpus has `tokens` to learn from. Yield the count after each shard."""
    have = corpus.tokens()
    finished: list[Sample] = []
    flushed = time.monotonic()
    for following, sequence in writer.write(corpus.next()):
        finished.append(sequence)
        have += len(sequence.ids) - 1 - sequence.learn
        enough = have >= tokens
        if enough or time.monotonic() - flushed > FLUSH_S:
            corpus.add(finished, following)
            finished, flushed = [], time.monotonic()
            yield have
        if enough:
            return
