"""The held-out prompts, and whether text that training has seen is found among prompts."""

from __future__ import annotations

import re
from collections import Counter

import numpy as np
import pytest
from click.testing import CliRunner
from tokenizers import Tokenizer

from bench.acceptance.training_overlap import GRAM_WORDS, overlap, training_texts
from bench.lab.prompts import first_of_each, read_prompts
from calibration.corpus import HELD_OUT_ONE_IN, Corpus, Sample
from cli.main import main
from edgespec.errors import UsageError
from edgespec.text import TOKENIZER

PLANTED = "the lazy brown fox jumps over the quick dog and over the lazy fox"
CLEAN = "over and over the brown dog jumps the quick lazy fox the the the"


def test_the_built_in_set():
    prompts = read_prompts(None)
    counts = Counter(prompt.category for prompt in prompts)
    assert set(counts) == {"chat", "code", "arithmetic", "summarising", "rewriting", "robot"}
    assert min(counts.values()) >= 24 and len(prompts) >= 168
    words = [" ".join(re.findall(r"\w+", prompt.text.lower())) for prompt in prompts]
    assert len(set(words)) == len(words)
    assert all(len(text.split()) >= GRAM_WORDS for text in words), "too short for its n-grams"


def test_no_prompt_repeats_part_of_another():
    texts = [prompt.text for prompt in read_prompts(None)]
    for number, text in enumerate(texts):
        assert overlap([text], texts[:number]) == [0.0], text


def test_the_first_of_each_category():
    prompts = read_prompts(None)
    assert first_of_each(prompts, None) == prompts
    few = first_of_each(prompts, 2)
    assert Counter(prompt.category for prompt in few) == dict.fromkeys(
        dict.fromkeys(prompt.category for prompt in prompts), 2
    )
    assert few == [prompt for prompt in prompts if prompt in few]
    assert few[0] == prompts[0]


def test_shares_by_hand():
    prompt = "one two three four five six seven eight nine ten"  # three runs of eight words
    assert overlap([prompt], ["zero ONE, two; three four five\nsix seven (eight) eleven"]) == [
        pytest.approx(1 / 3)
    ]
    assert overlap([prompt], ["one two three four five six seven", "eight nine ten"]) == [0.0]
    assert overlap([prompt], [f"and {prompt} and"]) == [1.0]
    assert overlap(["Good morning", "Good evening"], ["say good evening"]) == [0.0, 1.0]
    assert overlap(["…", prompt], [""]) == [0.0, 0.0]


@pytest.fixture
def corpus(tmp_path, tiny_bundle):
    """Training text in which `PLANTED` stands, once as what is held out and once as what is not."""
    tokenizer = Tokenizer.from_file(str(tiny_bundle.path(TOKENIZER)))
    corpus = Corpus(tmp_path / "corpus")

    def sample(text):
        ids = np.array(tokenizer.encode(text).ids, np.uint32)
        top = np.zeros((len(ids), 1))
        return Sample(ids, 0, len(ids) - 2, top.astype(np.uint32), top.astype(np.float16))

    def add(texts):
        corpus.add([sample(text) for text in texts], following=0)
        return corpus

    return add


def test_a_planted_prompt_is_found_in_training_text(corpus, tiny_bundle):
    tokenizer = Tokenizer.from_file(str(tiny_bundle.path(TOKENIZER)))
    # One in `HELD_OUT_ONE_IN` sequences is not trained on, so the planted text stands in several.
    texts = [f"number {number} {PLANTED}" for number in range(HELD_OUT_ONE_IN // 4)]
    folder = corpus(texts).folder
    shares = overlap([CLEAN, PLANTED], training_texts(folder, tokenizer))
    assert shares == [0.0, 1.0]
    with pytest.raises(UsageError, match="no training text"):
        list(training_texts(folder.parent, tokenizer))


@pytest.mark.parametrize(("prompt", "code"), [(PLANTED, 1), (CLEAN, 0)])
def test_the_command_refuses_what_training_has_seen(tmp_path, corpus, tiny_bundle, prompt, code):
    folder = corpus([f"number {number} {PLANTED}" for number in range(8)]).folder
    path = tmp_path / "prompts.jsonl"
    path.write_text(
        f'{{"prompt": "hello", "category": "a"}}\n{{"prompt": "{prompt}", "category": "b"}}'
    )
    arguments = ["bench", "acceptance", tiny_bundle.folder, "--prompts", path, "--max-tokens", 2]
    result = CliRunner().invoke(main, [str(a) for a in (*arguments, "--training", folder)])
    assert result.exit_code == code, result.output
    if code:
        assert f"1 of 2 prompts share {GRAM_WORDS} words" in result.stderr
        assert f"{path}, line 2" in result.stderr
    else:
        assert "0 of 2 prompts share" in result.stdout
