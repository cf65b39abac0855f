"""The whole system on a table: text with drafting == the target's text, in every way of running."""

import random

import numpy as np
import pytest
from scipy import stats

from edge_runtime.drafters import ModelDrafter, NgramDrafter, NoDrafter
from edgespec.config import CloudSettings, Request
from edgespec.sampling import Sampling
from engines.base import Row, final_choices
from engines.toy import ToyEngine

SAMPLINGS = [
    Sampling(),
    Sampling(0.7, seed=1),
    Sampling(1.0, 0.9, seed=2),
    Sampling(1.0, 0.9, 10, seed=3),
]


class Oracle:
    """Always right, as far as it is asked."""

    name = "oracle"

    def __init__(self, answers):
        self.answers = answers

    def reset(self):
        pass

    def draft(self, tokens, count, sampling):
        text = next(t for t in self.answers if t[: len(tokens)] == list(tokens))
        return text[len(tokens) : len(tokens) + count]


DRAFTERS = {
    "hostile": None,
    "near": lambda: ModelDrafter(ToyEngine(noise=0.3), "near"),
    "same": lambda: ModelDrafter(ToyEngine(), "same"),
    "small vocabulary": lambda: ModelDrafter(ToyEngine(20), "small"),
    "ngram": NgramDrafter,
    "none": NoDrafter,
}


def make(home, name):
    return home.hostile() if name == "hostile" else DRAFTERS[name]()


@pytest.mark.parametrize("drafter", DRAFTERS)
@pytest.mark.parametrize("sampling", SAMPLINGS, ids=str)
def test_the_answer_is_the_targets_own(house, drafter, sampling):
    home = house(ToyEngine())
    request = Request((3, 1, 4, 1, 5), 60, sampling)
    expected = home.alone(request)
    for length in range(1, 9):
        answer = home.answer(
            make(home, drafter), request, draft_length=length, drafting=drafter != "none"
        )
        assert answer.stats.token_ids == expected
        assert answer.stats.finish == "length"


def test_sampled_answers_follow_the_targets_distribution_with_drafting(house):
    """Second tokens of 3000 answers, given the first, against the table's own probabilities."""
    vocabulary, prompt = 6, (3, 1)
    home = house(ToyEngine(vocabulary, seed=5))
    drafter = ModelDrafter(ToyEngine(vocabulary, seed=5, noise=1.0), "near")
    counts = np.zeros((vocabulary, vocabulary))
    for seed in range(3000):
        request = Request(prompt, 3, Sampling(1.0, seed=seed))
        first, second, _ = home.answer(drafter, request, draft_length=2).stats.token_ids
        counts[first, second] += 1

    def probabilities(tokens):
        slot = home.engine.open()
        (choices,) = final_choices(home.engine, [Row(slot, 0, tokens)])
        home.engine.close(slot)
        mass = np.exp(choices.logits[0])
        return mass / mass.sum()

    assert stats.chisquare(counts.sum(1), 3000 * probabilities(prompt)).pvalue > 1e-3
    for first in np.flatnonzero(counts.sum(1) > 200):
        expected = counts[first].sum() * probabilities((*prompt, int(first)))
        assert stats.chisquare(counts[first], expected).pvalue > 1e-3


def test_drafting_saves_rounds_when_the_draft_is_right(house):
    home = house(ToyEngine())
    request = Request((3, 1, 4, 1, 5), 60)
    text = [*request.prompt, *home.alone(request)]
    answer = home.answer(Oracle([text]), request, draft_length=5)
    assert answer.stats.accepted == 50 - 1
    assert answer.stats.rounds == 10


def test_several_devices_share_batches_and_get_their_own_text(house):
    home = house(ToyEngine(), settings=CloudSettings(max_batch_tokens=64, prefill_chunk=8))
    drafters = ["near", "ngram", "hostile", "none"]
    requests = [
        Request(tuple(range(2 + 9 * number)) or (1,), 40 + number, SAMPLINGS[number])
        for number in range(4)
    ]
    requests = [Request(r.prompt or (1,), r.max_tokens, r.sampling) for r in requests]
    expected = [home.alone(request) for request in requests]
    sizes = []
    next_batch = home.service.next_batch

    def counted():
        batch = next_batch()
        if batch:
            sizes.append(len(batch.rows))
        return batch

    home.service.next_batch = counted
    loops = [home.device(make(home, name), drafting=name != "none") for name in drafters]
    answers = home.together(loops, requests)
    assert [answer.stats.token_ids for answer in answers] == expected
    assert max(sizes) > 1
    assert home.service.active == 0


@pytest.mark.parametrize("length", range(1, 9))
def test_end_of_text_inside_a_draft_ends_the_answer_there(house, length):
    plain = house(ToyEngine())
    request = Request((2, 7), 60)
    text = plain.alone(request)
    end = text[17]
    home = house(ToyEngine(), end_ids=(end,))
    expected = text[: text.index(end) + 1]
    answer = home.answer(Oracle([[*request.prompt, *text]]), request, draft_length=length)
    assert answer.stats.token_ids == expected == home.alone(request)
    assert answer.stats.finish == "end"


@pytest.mark.parametrize("most", range(1, 12))
def test_the_limit_inside_a_round(house, most):
    home = house(ToyEngine())
    request = Request((2, 7), most)
    answer = home.answer(DRAFTERS["same"](), request, draft_length=5)
    assert answer.stats.token_ids == home.alone(request)
    assert len(answer.stats.token_ids) == most


def test_an_answer_may_fill_the_context_to_its_last_position(house):
    home = house(ToyEngine(context=40))
    request = Request((2, 7, 1), 1000)
    answer = home.answer(DRAFTERS["same"](), request, draft_length=8)
    assert len(answer.state.tokens) == 40
    assert answer.stats.token_ids == home.alone(Request(request.prompt, 37))


def test_a_restarted_cloud_goes_on_where_the_device_stands(house):
    home = house(ToyEngine())
    request = Request((2, 7, 1), 50, Sampling(1.0, seed=9))
    expected = home.alone(request)
    loop = home.device(DRAFTERS["near"]())
    answer = loop.start(request)
    for number, _ in enumerate(loop.write(answer, request)):
        if number in (5, 23, 40):
            home.engine = ToyEngine()
            home.start()
    assert answer.stats.token_ids == expected
    assert answer.stats.resumed == 3


@pytest.mark.parametrize("drafting", [True, False])
@pytest.mark.parametrize("seed", range(6))
def test_lost_and_repeated_packets_change_nothing(house, drafting, seed):
    """A link that drops and doubles packets either way, which ZeroMQ may do across reconnects."""
    home = house(ToyEngine())
    request = Request((2, 7, 1), 60, Sampling(1.0, seed=seed))
    expected = home.alone(request)
    loop = home.device(DRAFTERS["near"](), drafting=drafting, give_up=1e9)
    link, chance = loop._link, random.Random(seed)
    send, receive = link.send, link.receive

    def bad_send(message):
        for _ in range(chance.choice([0, 1, 1, 1, 2])):
            send(message)

    def bad_receive(timeout):
        return [m for m in receive(timeout) for _ in range(chance.choice([0, 1, 1, 1, 2]))]

    answer = loop.start(request)
    link.send, link.receive = bad_send, bad_receive
    for _ in loop.write(answer, request):
        pass
    assert answer.stats.token_ids == expected
