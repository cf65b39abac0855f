"""Whether prompts to measure on stand in a training text, by word n-grams.

A run of eight words in common is the usual sign (GPT-3 took 13, Brown et al., arXiv 2005.14165; 8
is stricter). Words are compared in lower case and without punctuation. A prompt of fewer words is
one n-gram, of all its words. The n-grams of the prompts are kept, the training text streams by.
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

WORDS = 8
_BATCH = 512
_WORD = re.compile(r"\w+")
Gram = tuple[str, ...]


def overlap(prompts: Sequence[str], texts: Iterable[str]) -> list[float]:
    """For each prompt, the share of its n-grams, as a set, that occur in any of `texts`."""
    grams = [_grams(prompt) for prompt in prompts]
    wanted: dict[int, set[Gram]] = defaultdict(set)
    for gram in set().union(*grams):
        wanted[len(gram)].add(gram)
    found: set[Gram] = set()
    for text in texts:
        words = _WORD.findall(text.lower())
        for size, these in wanted.items():
            found |= these.intersection(_windows(words, size))
    return [len(of_one & found) / max(len(of_one), 1) for of_one in grams]


def _grams(prompt: str) -> set[Gram]:
    words = _WORD.findall(prompt.lower())
    return set(_windows(words, min(WORDS, len(words)))) if words else set()


def _windows(words: Sequence[str], size: int) -> Iterator[Gram]:
    return zip(*(words[start:] for start in range(size)), strict=False)


def training_texts(folder: Path, tokenizer: Tokenizer) -> Iterator[str]:
    """What a draft is trained on, requests and answers, sequence by sequence.

    Raises `UsageError` for a folder that is no corpus.
    """
    corpus = Corpus(folder)
    if not corpus.shards():
        raise UsageError(f"{folder} is no training text: it has no shard-*.npz")
    ids = (sample.ids.tolist() for sample in corpus.samples(held_out=False))
    while batch := list(islice(ids, _BATCH)):
        yield from tokenizer.decode_batch(batch)
