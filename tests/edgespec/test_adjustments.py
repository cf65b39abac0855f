"""Adjustments of the logits: by their formula, and independent of what was asked before."""

import random

import msgspec
import numpy as np
import pytest

from edgespec.adjustments import adjusted, adjustments_of
from edgespec.errors import UsageError
from edgespec.sampling import Sampling, choose, keep, likeliest
from edgespec.sampling_parameters import MAX_BIASES

VOCABULARY = 40
ALL = Sampling(
    presence_penalty=0.5,
    frequency_penalty=0.25,
    repetition_penalty=1.5,
    logit_bias=((3, 4.0), (5, -100.0)),
)


def by_formula(logits, sampling, prompt, answer):
    """Every step for every token, with nothing remembered."""
    biases = dict(sampling.logit_bias)
    result = []
    for token, logit in enumerate(logits.tolist()):
        value = float(np.float32(logit + biases.get(token, 0.0)))
        if token in prompt or token in answer:
            repetition = sampling.repetition_penalty
            value = value / repetition if value > 0 else value * repetition
        value -= sampling.frequency_penalty * answer.count(token)
        value -= sampling.presence_penalty * (token in answer)
        result.append(value)
    return np.float32(result)


@pytest.mark.parametrize(
    "sampling",
    [
        ALL,
        Sampling(presence_penalty=2.0),
        Sampling(presence_penalty=-2.0),
        Sampling(frequency_penalty=-0.3),
        Sampling(repetition_penalty=0.8),
        Sampling(repetition_penalty=1.3),
        Sampling(logit_bias=((39, 7.5),)),
    ],
    ids=str,
)
def test_a_prefix_gives_the_same_logits_whatever_was_asked_before(sampling):
    chance = random.Random(1)
    noise = np.random.default_rng(2)
    prompt = [chance.randrange(VOCABULARY) for _ in range(6)]
    adjustments = adjustments_of(sampling, prompt)
    answers = [[]]
    for _ in range(300):  # a tree of drafts: any branch is longer, shorter, or another one
        answer = chance.choice(answers)[: chance.randrange(12)]
        answer = [*answer, *(chance.randrange(VOCABULARY) for _ in range(chance.randrange(4)))]
        answers.append(answer)
        logits = noise.standard_normal(VOCABULARY).astype(np.float32) * 4
        before = logits.copy()
        found = adjustments.apply(logits, [*prompt, *answer])
        assert found.tolist() == by_formula(logits, sampling, prompt, answer).tolist()
        assert logits.tolist() == before.tolist()


def test_half_precision_is_adjusted_in_single():
    logits = np.linspace(-4, 4, VOCABULARY).astype(np.float16)
    found = adjustments_of(ALL, [1, 2]).apply(logits, [1, 2, 7, 7])
    assert found.dtype == np.float32
    assert found.tolist() == by_formula(logits, ALL, [1, 2], [7, 7]).tolist()


def test_a_smaller_vocabulary_has_the_same_logits_as_far_as_it_goes():
    logits = np.linspace(-4, 4, VOCABULARY).astype(np.float32)
    sampling = Sampling(
        repetition_penalty=1.2, presence_penalty=1.0, logit_bias=((3, 4.0), (30, 1.0))
    )
    text = [1, 35, 20, 39, 2, 2**31 - 1]
    small = adjustments_of(sampling, text[:2]).apply(logits[:20], text)
    assert small.tolist() == adjustments_of(sampling, text[:2]).apply(logits, text)[:20].tolist()


def test_a_session_that_asks_for_nothing_has_its_logits_untouched():
    adjustments = adjustments_of(Sampling(0.7, 0.9, 5, 1, min_p=0.1), [1, 2])
    logits = np.zeros(4, np.float32)
    assert adjustments is None
    assert adjusted(logits, adjustments, [1, 2, 3]) is logits


def test_masks_come_first_and_nothing_brings_a_masked_token_back():
    class Mask:
        def advance(self, tokens):
            pass

        def retreat(self, tokens):
            pass

        def apply(self, logits):
            logits[[3, 8]] = -np.inf

    logits = np.linspace(-4, 4, VOCABULARY).astype(np.float32)
    found = adjustments_of(ALL, [3], [Mask()]).apply(logits, [3, 8, 8])
    assert [token for token in range(VOCABULARY) if found[token] == -np.inf] == [3, 8]
    assert choose(found, Sampling(1.0, top_k=40, seed=3), 9) not in (3, 8)


def test_greedy_obeys_penalties_and_biases():
    logits = np.array([1.0, 3.0, 2.9, 0.0], np.float32)
    penalised = adjustments_of(Sampling(presence_penalty=0.5), [0])
    assert choose(penalised.apply(logits, [0]), Sampling(), 1) == 1
    assert choose(penalised.apply(logits, [0, 1]), Sampling(), 2) == 2
    biased = adjustments_of(Sampling(logit_bias=((3, 9.0),)), [0])
    assert choose(biased.apply(logits, [0]), Sampling(), 1) == 3


def test_parameters_that_were_saved_before_there_were_penalties_are_read():
    assert msgspec.json.decode(b"[0.7,0.9,40,5]", type=Sampling) == Sampling(0.7, 0.9, 40, 5)
    assert msgspec.json.decode(msgspec.json.encode(ALL), type=Sampling) == ALL


def test_min_p_keeps_tokens_by_their_probability_relative_to_the_likeliest():
    logits = np.log([0.5, 0.26, 0.15, 0.05, 0.04])
    assert keep(logits, Sampling(1.0, min_p=0.5)).tolist() == [0, 1]
    assert keep(logits, Sampling(1.0, min_p=0.1)).tolist() == [0, 1, 2, 3]
    assert keep(logits, Sampling(2.0, min_p=0.5)).tolist() == [0, 1, 2]  # 0.5, at twice T, is 0.25
    assert keep(logits, Sampling(1.0, min_p=1.0)).tolist() == [0]
    # The sum that top-p reaches is that of the tokens which min-p leaves: 0.76 here.
    assert keep(logits, Sampling(1.0, 0.65, min_p=0.5)).tolist() == [0]
    assert keep(logits, Sampling(1.0, 0.65)).tolist() == [0, 1]
    assert keep(logits, Sampling(1.0, top_k=2, min_p=0.1)).tolist() == [0, 1]


def test_min_p_decides_what_is_chosen():
    logits = np.log([0.5, 0.3, 0.2])
    chosen = {choose(logits, Sampling(1.0, seed=5, min_p=0.5), n) for n in range(200)}
    assert chosen == {0, 1}


def test_the_likeliest_are_finite():
    logits = np.array([-np.inf, 2.0, -np.inf, 5.0, 1.0])
    assert likeliest(logits, 2).tolist() == [1, 3]
    assert likeliest(logits, 64).tolist() == [1, 3, 4]
    assert likeliest(np.full(3, -np.inf), 2).tolist() == []


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"min_p": 1.5}, "min-p is 1.5; it must be from 0 to 1"),
        ({"min_p": float("nan")}, "min-p is nan"),
        ({"presence_penalty": 3.0}, "presence penalty is 3.0; it must be from -2 to 2"),
        ({"frequency_penalty": -2.1}, "frequency penalty is -2.1"),
        ({"repetition_penalty": 0.0}, "repetition penalty is 0.0; it must be from 0.01 to 100"),
        ({"logit_bias": ((1, 101.0),)}, "logit bias of token 1 is 101.0"),
        ({"logit_bias": ((1, 1.0), (1, 2.0))}, "names a token twice"),
        ({"logit_bias": ((-1, 1.0),)}, "names the token id -1"),
        ({"logit_bias": tuple((n, 1.0) for n in range(MAX_BIASES + 1))}, "names 301 tokens"),
    ],
)
def test_parameters_out_of_range_are_named(fields, sentence):
    with pytest.raises(UsageError, match=sentence):
        Sampling(**fields).check()
