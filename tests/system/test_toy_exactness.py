"""The whole system on a table: text with drafting == the target's text, in every way of running."""

import random

import numpy as np
import pytest
from scipy import stats

from cloud_runtime.steps import Batch
from edgespec.config import CloudSettings, Request, Tactics
from edgespec.sampling import Sampling
from engines.base import Row, final_choices
from engines.drafters.base import Guess
from engines.drafters.model import ModelDrafter
from engines.drafters.ngram import NgramDrafter
from engines.drafters.none import NoDrafter
from engines.toy import ToyEngine
from tests.trouble import WAYS, Fickle, Trouble

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

    batch = 1
    acceptance = 0.98

    def retain(self, sessions):
        pass

    def guess(self, requests):
        return [self._guess(list(request.tokens)) for request in requests]

    def _guess(self, tokens):
        text = next(t for t in self.answers if t[: len(tokens)] == tokens)
        return Guess(text[len(tokens)], 0.98) if len(text) > len(tokens) else None


DRAFTERS = {
    "hostile": None,
    "near": lambda: ModelDrafter(ToyEngine(noise=0.3), "near"),
    "same": lambda: ModelDrafter(ToyEngine(), "same"),
    "small vocabulary": lambda: ModelDrafter(ToyEngine(20), "small"),
    "ngram": NgramDrafter,
    "none": NoDrafter,
}


def cloud_draft():
    return ModelDrafter(ToyEngine(noise=0.3), "near", branches=1)


def make(home, name):
    return home.hostile() if name == "hostile" else DRAFTERS[name]()


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("drafter", DRAFTERS)
def test_the_answer_is_the_targets_own(house, drafter, way):
    home = house(ToyEngine(), cloud_draft=cloud_draft())
    for sampling in SAMPLINGS:
        request = Request((3, 1, 4, 1, 5), 60, sampling)
        answer = home.answer(make(home, drafter), request, **WAYS[way])
        assert answer.stats.token_ids == home.alone(request)
        assert answer.stats.finish == "length"
        assert home.service.sessions.active == 0


def test_sampled_answers_follow_the_targets_distribution_with_drafting(house):
    """Second tokens of 3000 answers, given the first, against the table's own probabilities."""
    vocabulary, prompt = 6, (3, 1)
    home = house(ToyEngine(vocabulary, seed=5))
    drafter = ModelDrafter(ToyEngine(vocabulary, seed=5, noise=1.0), "near")
    counts = np.zeros((vocabulary, vocabulary))
    for seed in range(3000):
        request = Request(prompt, 3, Sampling(1.0, seed=seed))
        first, second, _ = home.answer(drafter, request).stats.token_ids
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
    lockstep = {"tactics": Tactics("none"), "draft_length": 5}
    answer = home.answer(Oracle([text]), request, **lockstep)
    assert (answer.stats.accepted, answer.stats.rounds) == (49, 11)  # the first is the prompt


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
    next_step = home.service.stepping.next

    def counted(now):
        step = next_step(now)
        if isinstance(step, Batch):
            sizes.append(len(step.rows))
        return step

    home.service.stepping.next = counted
    loops = [home.device(make(home, name)) for name in drafters]
    answers = home.together(loops, requests)
    assert [answer.stats.token_ids for answer in answers] == expected
    assert max(sizes) > 1
    assert home.service.sessions.active == 0


@pytest.mark.parametrize("length", range(1, 9))
def test_end_of_text_inside_a_draft_ends_the_answer_there(house, length):
    plain = house(ToyEngine())
    request = Request((2, 7), 60)
    text = plain.alone(request)
    end = text[17]
    home = house(ToyEngine(), end_ids=(end,))
    expected = text[: text.index(end) + 1]
    oracle = Oracle([[*request.prompt, *text]])
    tactics = Tactics("none" if length > 1 else "tree")
    answer = home.answer(oracle, request, tactics=tactics, draft_length=length)
    assert answer.stats.token_ids == expected == home.alone(request)
    assert answer.stats.finish == "end"


@pytest.mark.parametrize("most", range(1, 12))
def test_the_limit_inside_a_round(house, most):
    home = house(ToyEngine())
    request = Request((2, 7), most)
    answer = home.answer(DRAFTERS["same"](), request)
    assert answer.stats.token_ids == home.alone(request)
    assert len(answer.stats.token_ids) == most


def test_an_answer_may_fill_the_context_to_its_last_position(house):
    home = house(ToyEngine(context=40))
    request = Request((2, 7, 1), 1000)
    answer = home.answer(DRAFTERS["same"](), request)
    assert len(answer.state.tokens) == 40
    assert answer.stats.token_ids == home.alone(Request(request.prompt, 37))


def test_a_restarted_cloud_goes_on_where_the_device_stands(house):
    home = house(ToyEngine())
    request = Request((2, 7, 1), 50, Sampling(1.0, seed=9))
    expected = home.alone(request)
    loop = home.device(DRAFTERS["near"]())
    answer = loop.start(request)
    for number, _ in enumerate(loop.write(answer)):
        if number in (5, 23, 40):
            home.engine = ToyEngine()
            home.start()
    assert answer.stats.token_ids == expected
    assert answer.stats.resumed >= 3


@pytest.mark.parametrize("block", range(10))
def test_trouble_on_the_link_and_changes_of_mode_never_change_the_text(house, block):
    """Two hundred randomised runs: tactics, drafters, sampling, a link in trouble, terms that
    change in the middle of an answer, clouds that lose their memory."""
    for seed in range(20 * block, 20 * block + 20):
        chance = random.Random(seed)
        home = house(ToyEngine(), cloud_draft=cloud_draft())
        sampling = chance.choice([*SAMPLINGS, Sampling(1.0, seed=seed)])
        request = Request((2, 7, 1), 60, sampling)
        expected = home.alone(request)
        settings = chance.choice(list(WAYS.values()))
        drafter = make(home, chance.choice(list(DRAFTERS)))
        loop = home.device(drafter, **settings, give_up=1e9)
        if chance.random() < 0.5 and loop.modes.terms.decoding:
            loop.modes = Fickle(loop.modes, chance)
        answer = loop.start(request)
        Trouble(loop._link, chance)
        for _ in loop.write(answer):
            if chance.random() < 0.02:
                home.start()
        assert answer.stats.token_ids == expected, f"seed {seed}"
