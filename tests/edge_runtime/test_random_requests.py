"""Requests drawn at random: every way of writing gives the text that the rule gives by hand.

The reference works out every step of `edgespec.sampling` for every token from the target's logits,
and remembers nothing. Only the noise is edgespec's own.
"""

import random
from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edgespec.config import Request, Tactics
from edgespec.protocol import Hint, Verdict
from edgespec.sampling import Sampling, gumbel_noise
from engines.base import Row, final_choices
from engines.drafters.model import ModelDrafter
from engines.toy import ToyEngine

VOCABULARY = 50
END_IDS = (49,)
ids = st.integers(0, VOCABULARY - 1)
maybe = st.sampled_from


@st.composite
def samplings(draw):
    biases = draw(st.dictionaries(ids, st.floats(-20, 20, width=32), max_size=4))
    return Sampling(
        temperature=draw(maybe([0.0, 0.3, 0.8, 1.0, 2.0])),
        top_p=draw(maybe([1.0, 0.95, 0.7, 0.2])),
        top_k=draw(maybe([0, 1, 5, 20, 200])),
        seed=draw(st.integers(0, 2**63 - 1)),
        min_p=draw(maybe([0.0, 0.02, 0.2, 1.0])),
        presence_penalty=draw(maybe([0.0, 0.7, 2.0, -1.0])),
        frequency_penalty=draw(maybe([0.0, 0.1, 1.5, -0.4])),
        repetition_penalty=draw(maybe([1.0, 1.2, 3.0, 0.8])),
        logit_bias=tuple(sorted(biases.items())),
    )


requests = st.builds(
    Request,
    st.lists(ids, min_size=1, max_size=8).map(tuple),
    st.integers(1, 40),
    samplings(),
    logprobs=maybe([None, 0, 3, 20]),
)


def logits_after(engine, tokens):
    slot = engine.open()
    (choices,) = final_choices(engine, [Row(slot, 0, tokens)])
    engine.close(slot)
    return choices.logits[0]


def chosen(logits, sampling, prompt, answer):
    """The token after `answer` by the formulas, step by step, over the whole vocabulary."""
    scores = logits.astype(np.float64).copy()
    for token, bias in sampling.logit_bias:
        scores[token] += bias
    for token in range(VOCABULARY):
        if token in prompt or token in answer:
            repetition = sampling.repetition_penalty
            scores[token] *= 1 / repetition if scores[token] > 0 else repetition
        scores[token] -= sampling.frequency_penalty * answer.count(token)
        scores[token] -= sampling.presence_penalty * (token in answer)
    if sampling.temperature == 0:
        return int(scores.argmax())
    probabilities = np.exp((scores - scores.max()) / sampling.temperature)
    probabilities /= probabilities.sum()
    kept = [int(token) for token in np.argsort(-probabilities, kind="stable")]
    kept = [v for v in kept if probabilities[v] >= sampling.min_p * probabilities.max() - 1e-12]
    kept = kept[: sampling.top_k or None]
    total, before, nucleus = probabilities[kept].sum(), 0.0, []
    for token in kept:
        if before < sampling.top_p * total:
            nucleus.append(token)
        before += probabilities[token]
    position = len(prompt) + len(answer)
    noise = gumbel_noise(sampling.seed, position, np.arange(VOCABULARY), VOCABULARY)
    return max(nucleus, key=lambda v: scores[v] / sampling.temperature + noise[v])


@dataclass
class ByHand:
    tokens: list
    logprobs: list
    """The log-probabilities of the whole vocabulary at each token."""


def by_hand(request):
    engine, prompt = ToyEngine(VOCABULARY), list(request.prompt)
    found = ByHand([], [])
    while len(found.tokens) < request.max_tokens and found.tokens[-1:] != list(END_IDS):
        logits = logits_after(engine, [*prompt, *found.tokens])
        found.logprobs.append(logits - np.log(np.exp(logits).sum()))
        found.tokens.append(chosen(logits, request.sampling, prompt, found.tokens))
    return found


def check(answer, wanted):
    """Tokens and, where they were asked for, log-probabilities are those by hand."""
    pieces, count = list(answer.unread), answer.request.logprobs
    assert [piece.token for piece in pieces] == answer.stats.token_ids == wanted.tokens
    for piece, row in zip(pieces, wanted.logprobs, strict=True):
        assert (piece.logprobs is None) == (count is None)
        if count is not None:
            assert piece.logprobs.logprob == pytest.approx(row[piece.token], abs=1e-5)
            top = np.sort(row)[::-1][:count]
            assert [p for _, p in piece.logprobs.top] == pytest.approx(top.tolist(), abs=1e-5)
            assert all(row[v] == pytest.approx(p, abs=1e-5) for v, p in piece.logprobs.top)


def write(home, loop, answers, cuts):
    """Writes answers together. `cuts` decides when messages are late or lost, and when the cloud
    starts anew."""
    receive, send, late = loop._link.receive, loop._link.send, []

    def lossy(timeout):
        if not cuts:
            return receive(timeout)
        if cuts.random() < 0.01:
            home.start()
        arrived = receive(timeout)
        if cuts.random() < 0.3:  # out of order, as over two connections
            arrived = late + arrived
            late.clear()
        kept = []
        for message in arrived:
            if not isinstance(message, Verdict | Hint) or cuts.random() >= 0.2:
                kept.append(message)
            elif cuts.random() < 0.7:
                late.append(message)
        return kept

    def unsure(message):
        if not cuts or cuts.random() >= 0.05:
            send(message)

    loop._link.receive, loop._link.send = lossy, unsure
    for answer in answers:
        loop.open(answer)
    for _ in range(20_000):
        loop.turn()
        for answer in [answer for answer in loop.running if answer.over]:
            loop.close(answer)
        if not loop.running:
            return
    raise AssertionError("the answers never ended")


WAYS = {
    "alone": {"mode": "cloud"},
    "auto": {},
    "edge": {"mode": "edge"},
    "lockstep": {"tactics": Tactics("none"), "draft_length": 4},
    "hints": {"tactics": Tactics("exits", hints=True)},
    "cloud-draft": {"mode": "cloud-draft"},
}


@settings(
    max_examples=80,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(st.lists(requests, min_size=1, max_size=3), maybe(sorted(WAYS)), st.integers(0, 2**32))
def test_any_request_written_in_any_way_is_the_targets_own(house, asked, way, seed):
    wanted = [by_hand(request) for request in asked]
    for cuts in (None, random.Random(seed)):
        home = house(
            ToyEngine(VOCABULARY),
            END_IDS,
            cloud_draft=ModelDrafter(ToyEngine(VOCABULARY, noise=0.3), "beside"),
        )
        loop = home.device(
            ModelDrafter(ToyEngine(VOCABULARY, noise=0.3), "near"), give_up=1e6, **WAYS[way]
        )
        answers = [loop.start(request) for request in asked]
        write(home, loop, answers, cuts)
        for answer, one in zip(answers, wanted, strict=True):
            check(answer, one)
