"""Answers with a grammar: text with drafting == the target's text, in every way of running."""

import json
import random
from contextlib import suppress

import pytest
from tokenizers import Tokenizer

from edgespec.config import CloudSettings, Request
from edgespec.errors import LinkError, UsageError
from edgespec.grammar import Grammar, json_grammar
from edgespec.grammars import Grammars
from edgespec.policies import GrammarLimits
from edgespec.sampling import Sampling
from engines.drafters.model import ModelDrafter
from engines.drafters.ngram import NgramDrafter
from engines.drafters.none import NoDrafter
from engines.toy import ToyEngine
from tests.trouble import WAYS, Fickle, Trouble

END, VOCABULARY = 1, 300
SCHEMA = json_grammar(
    {
        "type": "object",
        "properties": {
            "name": {"type": "string", "maxLength": 4},
            "kind": {"enum": ["fox", "dog"]},
            "sizes": {"type": "array", "items": {"type": "integer", "maximum": 99}, "maxItems": 2},
        },
        "required": ["name", "kind", "sizes"],
        "additionalProperties": False,
    }
)
REGEX = Grammar("regex", r"(the (quick|lazy)? ?(fox|dog)\. ){2,6}")
SAMPLINGS = [
    Sampling(),
    Sampling(0.7, seed=1),
    Sampling(1.0, 0.9, 10, seed=3),
    Sampling(1.0, seed=4, presence_penalty=0.5, logit_bias=((END, 9.0), (40, -3.0))),
]


LIMITS = GrammarLimits(step_wait_s=60.0, penalty_s=0.0)
PATIENT = CloudSettings(grammars=LIMITS)
"""Steps that wait for their masks, since the clocks of these tests are not real."""


class Compiled(Grammars):
    """Grammars that are compiled at once, for the same reason."""

    def start(self, grammar, end_ids, device=b""):
        mask = super().start(grammar, end_ids, device)
        with suppress(UsageError):
            mask.wait()
        return mask


@pytest.fixture(scope="module")
def grammars(tiny_llama_folder):
    grammars = Compiled(tiny_llama_folder / "tokenizer.json", [END], LIMITS)
    yield grammars
    grammars.close()


@pytest.fixture(scope="module")
def tokenizer(tiny_llama_folder):
    return Tokenizer.from_file(str(tiny_llama_folder / "tokenizer.json"))


@pytest.fixture
def home(house, grammars):
    def build():
        draft = ModelDrafter(toy(noise=0.3), "near", branches=1)
        return house(toy(), (END,), PATIENT, cloud_draft=draft, grammars=grammars)

    return build


def toy(**options):
    return ToyEngine(VOCABULARY, **options)


DRAFTERS = {
    "hostile": None,
    "near": lambda: ModelDrafter(toy(noise=0.3), "near"),
    "small vocabulary": lambda: ModelDrafter(ToyEngine(200), "small"),
    "ngram": NgramDrafter,
    "none": NoDrafter,
}


def drafter(home, name):
    return home.hostile() if name == "hostile" else DRAFTERS[name]()


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", DRAFTERS)
def test_the_answer_is_the_targets_own(home, tokenizer, name, way):
    home = home()
    for number, sampling in enumerate(SAMPLINGS):
        request = Request((3, 1, 4), 80, sampling, grammar=(SCHEMA, REGEX)[number % 2])
        answer = home.answer(drafter(home, name), request, **WAYS[way])
        assert answer.stats.token_ids == home.alone(request)
        if answer.stats.finish == "end" and number % 2 == 0:
            assert json.loads(tokenizer.decode(answer.stats.token_ids))
        assert home.service.sessions.active == 0


def test_a_grammar_changes_the_text_and_ends_it(home, tokenizer):
    home = home()
    request = Request((3, 1, 4), 200, grammar=SCHEMA)
    answer = home.answer(DRAFTERS["near"](), request)
    assert answer.stats.finish == "end"
    assert set(json.loads(tokenizer.decode(answer.stats.token_ids))) == {"name", "kind", "sizes"}


@pytest.mark.parametrize("block", range(6))
def test_trouble_on_the_link_and_changes_of_mode_never_change_the_text(home, block):
    """Random tactics, drafters, sampling, a link in trouble, terms that change in the middle of an
    answer, clouds that lose their memory."""
    for seed in range(10 * block, 10 * block + 10):
        chance = random.Random(seed)
        one = home()
        sampling = chance.choice([*SAMPLINGS, Sampling(1.0, seed=seed)])
        request = Request((2, 7, 1), 60, sampling, grammar=chance.choice([SCHEMA, REGEX]))
        expected = one.alone(request)
        settings = chance.choice(list(WAYS.values()))
        loop = one.device(drafter(one, chance.choice(list(DRAFTERS))), **settings, give_up=1e9)
        if chance.random() < 0.5 and loop.modes.terms.decoding:
            loop.modes = Fickle(loop.modes, chance)
        answer = loop.start(request, None, one.grammar(request))
        Trouble(loop._link, chance)
        for _ in loop.write(answer):
            if chance.random() < 0.02:
                one.start()
        assert answer.stats.token_ids == expected, f"seed {seed}"


def test_committed_tokens_of_an_earlier_session_count(home):
    home = home()
    request = Request((2, 7, 1), 60, Sampling(1.0, seed=5), grammar=SCHEMA)
    expected = home.alone(request)
    begun = Request(
        request.prompt, 60, request.sampling, committed=tuple(expected[:9]), grammar=SCHEMA
    )
    assert home.answer(DRAFTERS["near"](), begun).stats.token_ids == expected


class Counting(NoDrafter):
    """Counts how often it is asked."""

    name = "counting"
    acceptance = 0.8
    asked = 0

    def guess(self, requests):
        self.asked += len(requests)
        return super().guess(requests)


@pytest.mark.parametrize("mode", ["edge", "cloud"])
def test_forced_tokens_are_drafted_for_nothing_and_accepted(home, mode):
    """A text of which all is forced takes few steps of the target, without a draft model."""
    home = home()
    words = "the quick brown fox jumps over the lazy dog " * 3
    request = Request((3, 1, 4), 250, grammar=Grammar("regex", words))
    counting = Counting() if mode == "edge" else NoDrafter()
    answer = home.answer(counting, request, mode=mode)
    tokens = len(answer.stats.token_ids)
    assert answer.stats.token_ids == home.alone(request) and answer.stats.finish == "end"
    assert tokens > 20 and answer.stats.rounds < tokens / 3
    if mode == "edge":
        assert answer.stats.accepted > tokens / 2


def test_an_invalid_grammar_ends_the_answer_and_no_other(home):
    home = home()
    with pytest.raises(LinkError, match="JSON schema cannot be used") as refused:
        home.answer(DRAFTERS["near"](), Request((3,), 9, grammar=json_grammar({"type": "x"})))
    assert refused.value.code == "invalid" and home.service.sessions.active == 0
    request = Request((3, 1, 4), 60, grammar=SCHEMA)
    assert home.answer(DRAFTERS["near"](), request).stats.token_ids == home.alone(request)


def test_a_grammar_that_fails_within_an_answer_ends_it_with_its_reason(house, grammars):
    home = house(toy(), (END,), PATIENT, grammars=grammars)
    request = Request((3,), 9, grammar=Grammar("lark", 'start: ("x" | "y") /aa*/ /ab/\n'))
    with pytest.raises(LinkError, match="too much time"):
        home.answer(NoDrafter(), request)
    assert home.service.sessions.active == 0


def test_a_cloud_without_the_package_says_what_to_install(house, grammars, monkeypatch):
    home = house(toy(), (END,), PATIENT, grammars=grammars)
    request = Request((3,), 9, grammar=REGEX)
    mask = grammars.start(REGEX, [END])
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    loop = home.device(NoDrafter())
    with pytest.raises(LinkError, match=r"pip install 'edgespec\[grammar\]' \(in the cloud\)"):
        list(loop.write(loop.start(request, None, mask)))


def test_a_cloud_whose_places_for_grammars_are_taken_asks_to_wait(house, tiny_llama_folder):
    tokenizer = tiny_llama_folder / "tokenizer.json"
    grammars = Compiled(tokenizer, [END], GrammarLimits(processes=1))
    home = house(toy(), (END,), PATIENT, grammars=grammars)
    taken = grammars.start(REGEX, [END])
    loop = home.device(NoDrafter(), give_up=3.0)
    pieces = loop.write(loop.start(Request((3,), 9, grammar=REGEX)))
    with pytest.raises(LinkError, match="too many answers have a grammar"):
        list(pieces)
    taken.close()
    grammars.close()


def test_a_cloud_without_grammars_refuses_in_one_sentence(house, grammars):
    home = house(toy(), (END,))
    loop = home.device(NoDrafter())
    request = Request((3,), 9, grammar=REGEX)
    mask = grammars.start(REGEX, [END])
    with pytest.raises(LinkError, match="no tokenizer for grammars"):
        list(loop.write(loop.start(request, None, mask)))
    assert mask.closed
