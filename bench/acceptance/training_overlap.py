"""Overlap of benchmark prompts with a training text, by word n-grams.

Eight consecutive words in common count as overlap (GPT-3 used 13, Brown et al., arXiv 2005.14165; 8
is stricter). Words are compared in lower case and without punctuation. A prompt of fewer words is
one n-gram of all its words. The n-grams of the prompts are kept in memory; the training text is
streamed.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path

from tokenizers import Tokenizer

from calibration.corpus import Corpus
from edgespec.errors import UsageError

GRAM_WORDS = 8
_BATCH_SAMPLES = 512
_WORD = re.compile(r"\w+")
Gram = tuple[str, ...]


def overlap(prompts: Sequence[str], texts: Iterable[str]) -> list[float]:
    """Share of the distinct n-grams of each prompt that occur in any of `texts`."""
    grams = [_grams(prompt) for prompt in prompts]
    by_size: dict[int, set[Gram]] = defaultdict(set)
    for gram in set().union(*grams):
        by_size[len(gram)].add(gram)
    found: set[Gram] = set()
    for text in texts:
        words = _WORD.findall(text.lower())
        for size, searched in by_size.items():
            found |= searched.intersection(_windows(words, size))
    return [len(each & found) / max(len(each), 1) for each in grams]


def _grams(prompt: str) -> set[Gram]:
    words = _WORD.findall(prompt.lower())
    return set(_windows(words, min(GRAM_WORDS, len(words)))) if words else set()


def _windows(words: Sequence[str], size: int) -> Iterator[Gram]:
    return zip(*(words[start:] for start in range(size)), strict=False)


def training_texts(folder: Path, tokenizer: Tokenizer) -> Iterator[str]:
    """Texts that a draft is trained on, requests and answers, one for each sequence.

    Raises `UsageError` for a folder that is not a corpus.
    """
    corpus = Corpus(folder)
    if not corpus.shards():
        raise UsageError(f"{folder} is no training text: it has no shard-*.npz")
    ids = (sample.ids.tolist() for sample in corpus.samples(held_out=False))
    while batch := list(islice(ids, _BATCH_SAMPLES)):
        yield from tokenizer.decode_batch(batch)
