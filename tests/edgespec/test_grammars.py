"""Grammars: masks are pure functions of the answer, and no grammar stops or kills this process."""

import json
import random
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer

from edgespec.adjustments import adjustments_of
from edgespec.errors import UsageError
from edgespec.grammar import MAX_GRAMMAR_BYTES, Grammar, chosen_grammar, json_grammar
from edgespec.grammars import Grammars
from edgespec.policies import GrammarLimits
from edgespec.sampling import Sampling

END = 1
SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 5},
        "kind": {"enum": ["fox", "dog"]},
        "sizes": {"type": "array", "items": {"type": "integer"}, "maxItems": 2},
    },
    "required": ["name", "kind", "sizes"],
    "additionalProperties": False,
}
GRAMMARS = [
    json_grammar(SCHEMA),
    json_grammar({"type": "object"}),
    Grammar("regex", r"(fox|foxy|[a-d]{3}bar) (baz|ba[0-9]+)( qux)?"),
    Grammar("lark", 'start: "the " word (" " word)* "."\nword: /[a-z]{1,5}/ | "quick brown"\n'),
]


@pytest.fixture(scope="module")
def tokenizer_file(tiny_llama_folder):
    return tiny_llama_folder / "tokenizer.json"


@pytest.fixture(scope="module")
def tokenizer(tokenizer_file):
    return Tokenizer.from_file(str(tokenizer_file))


@pytest.fixture(scope="module")
def grammars(tokenizer_file):
    grammars = Grammars(tokenizer_file, [END])
    yield grammars
    grammars.close()


def write(mask, chance, most=300):
    """A random legal answer and the ids that were legal before each of its tokens."""
    tokens, legal = [], []
    while len(tokens) < most and tokens[-1:] != [END]:
        ids = np.flatnonzero(mask.legal(300))
        assert ids.size, mask.refusal
        legal.append(ids.tolist())
        tokens.append(END if END in ids else int(chance.choice(ids.tolist())))
        mask.advance(tokens[-1:])
    return tokens, legal


@pytest.mark.parametrize("number", range(len(GRAMMARS)))
def test_legal_tokens_write_what_the_grammar_describes(grammars, tokenizer, number):
    chance = random.Random(number)
    mask = grammars.start(GRAMMARS[number], [END])
    tokens, _ = write(mask, chance, 2000)
    text = tokenizer.decode(tokens)
    if number < 2:
        assert isinstance(json.loads(text), dict)
    elif number == 2:
        assert text.startswith(("fox", "foxy")) or "bar" in text
    else:
        assert text.startswith("the ") and text.endswith(".")
    mask.close()


@pytest.mark.parametrize("number", range(len(GRAMMARS)))
def test_a_mask_depends_on_the_tokens_alone(grammars, number):
    """However a state was reached: in one go, token by token, after tokens that were taken back or
    that are illegal."""
    chance = random.Random(number)
    mask = grammars.start(GRAMMARS[number], [END])
    tokens, legal = write(mask, chance, 40)
    walker = grammars.start(GRAMMARS[number], [END])
    for _ in range(60):
        place = chance.randrange(len(legal))
        walker.retreat(walker._tokens[:])
        walker.advance(tokens[:place])
        if chance.random() < 0.3:
            stray = [chance.randrange(300) for _ in range(3)]
            walker.advance(stray)
            walker.legal(300)
            walker.retreat(stray)
        assert np.flatnonzero(walker.legal(300)).tolist() == legal[place], walker.refusal
    mask.close()
    walker.close()


def test_forced_tokens_are_the_only_legal_ones(grammars):
    mask = grammars.start(GRAMMARS[0], [END])
    forced = 0
    chance = random.Random(5)
    for _ in range(60):
        ids = np.flatnonzero(mask.legal(300)).tolist()
        if mask.forced():
            assert ids == mask.forced()[:1]
            forced += 1
        token = chance.choice(ids)
        if token == END:
            break
        mask.advance([token])
    assert forced > 5
    mask.close()


def test_the_end_is_legal_where_the_grammar_accepts_and_nothing_is_after_it(grammars, tokenizer):
    mask = grammars.start(Grammar("regex", "fox(es)?"), [END, 299])
    assert not mask.allows(END) and not mask.allows(299)
    mask.advance(tokenizer.encode("fox").ids)
    assert mask.allows(END) and mask.allows(299)
    mask.advance([END])
    assert not mask.legal(300).any() and not mask.allows(END)
    mask.retreat([END])
    assert mask.legal(300)[[END, 299]].all()
    mask.advance(tokenizer.encode("es").ids)
    assert np.flatnonzero(mask.legal(300)).tolist() == [END, 299]
    mask.close()


def test_masks_fit_any_vocabulary(grammars):
    mask = grammars.start(Grammar("regex", "[a-z]+"), [END])
    full = mask.legal(400)
    assert full.shape == (400,) and not full[300:].any()
    assert (mask.legal(50) == full[:50]).all()
    mask.close()


def test_the_mask_comes_before_biases_and_penalties(grammars, tokenizer):
    mask = grammars.start(Grammar("regex", "fox"), [END])
    legal = set(np.flatnonzero(mask.legal(300)).tolist())
    sampling = Sampling(logit_bias=((END, 100.0),), presence_penalty=2.0)
    adjustments = adjustments_of(sampling, [5], [mask])
    logits = adjustments.apply(np.zeros(300, np.float32), [5])
    assert set(np.flatnonzero(np.isfinite(logits)).tolist()) == legal
    mask.close()


@pytest.mark.parametrize(
    ("grammar", "words"),
    [
        (Grammar("json_schema", '{"type": "nonsense"}'), "JSON schema"),
        (Grammar("json_schema", "{"), "JSON schema"),
        (Grammar("json_schema", '{"not": {}}'), "not"),
        (Grammar("regex", "(fox"), "regular expression"),
        (Grammar("lark", "nothing"), "grammar"),
        (Grammar("lark", 'start: missing "a"\n'), "missing"),
    ],
)
def test_an_invalid_grammar_is_refused_in_one_sentence(grammars, grammar, words):
    mask = grammars.start(grammar, [END])
    with pytest.raises(UsageError, match="cannot be used") as refused:
        mask.wait()
    assert words in str(refused.value) and "\n" not in str(refused.value)
    assert not mask.legal(300).any()


HOSTILE = {
    "never ends": Grammar("lark", "start: /aa*/ /ab/\n"),
    "takes gigabytes": Grammar("regex", "a?" * 20000),
    "overflows the stack": Grammar(
        "lark", "start: r0\n" + "".join(f'r{i}: r{i + 1} "a"\n' for i in range(2500)) + 'r2500: "a"'
    ),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_grammar_ends_alone(grammars, name):
    """The loop waits for none of them: `ready` returns at once."""
    other = grammars.start(GRAMMARS[0], [END])
    hostile = grammars.start(HOSTILE[name], [END])
    longest_s, began = 0.0, time.monotonic()
    while not hostile.ready:
        before = time.monotonic()
        hostile.ready  # noqa: B018
        longest_s = max(longest_s, time.monotonic() - before)
        assert time.monotonic() - began < 60
        time.sleep(0.01)
    assert longest_s < 0.5
    assert hostile.refusal or name == "overflows the stack"
    assert other.legal(300).any()
    other.close()
    hostile.close()


def test_a_grammar_that_does_not_end_within_an_answer_is_given_up(tokenizer_file, tokenizer):
    limits = GrammarLimits(mask_s=0.1, reply_s=20.0)
    grammars = Grammars(tokenizer_file, [END], limits)
    mask = grammars.start(Grammar("lark", 'start: ("x" | "y") /aa*/ /ab/\n'), [END])
    mask.wait()
    assert mask.legal(300).any()
    mask.advance(tokenizer.encode("x").ids)
    assert not mask.legal(300).any()
    assert "too much time" in mask.refusal
    grammars.close()


def test_a_grammar_that_is_slow_at_every_token_is_given_up(tokenizer_file, tokenizer):
    grammars = Grammars(tokenizer_file, [END], GrammarLimits(burst_s=0.0, mean_mask_s=1e-9))
    mask = grammars.start(GRAMMARS[0], [END])
    first = tokenizer.encode("{").ids
    for _ in range(5000):  # this machine may count processor time in ticks
        mask.advance(first)
        mask.legal(300)
        mask.retreat(first)
        mask.legal(300)
        if mask.refusal:
            break
    assert "too much time" in mask.refusal
    grammars.close()


def test_texts_are_bounded_and_checked_before_anything_is_compiled(grammars):
    with pytest.raises(UsageError, match="at most"):
        grammars.start(Grammar("regex", "a" * (MAX_GRAMMAR_BYTES + 1)), [END])
    with pytest.raises(UsageError, match="empty"):
        grammars.start(Grammar("regex", ""), [END])
    with pytest.raises(UsageError, match="Unicode"):
        grammars.start(Grammar("regex", "\ud800"), [END])
    with pytest.raises(UsageError, match="end-of-text"):
        grammars.start(Grammar("regex", "a"), [])
    with pytest.raises(UsageError, match="not JSON"):
        json_grammar("{")
    with pytest.raises(UsageError, match="one of"):
        chosen_grammar({}, "a")


def test_more_answers_than_processes_are_refused(tokenizer_file):
    grammars = Grammars(tokenizer_file, [END], GrammarLimits(processes=1))
    first = grammars.start(GRAMMARS[2], [END])
    assert grammars.full
    with pytest.raises(UsageError, match="wait until one has ended"):
        grammars.start(GRAMMARS[2], [END])
    first.close()
    wait_until(lambda: not grammars.full)
    grammars.start(GRAMMARS[2], [END]).wait()
    grammars.close()


def wait_until(true):
    end = time.monotonic() + 30
    while not true():
        assert time.monotonic() < end
        time.sleep(0.01)


def test_a_copy_is_killed_when_its_answer_has_ended_and_counts_until_then(tokenizer_file):
    grammars = Grammars(tokenizer_file, [END], GrammarLimits(compile_s=1e3, processes=2))
    other = grammars.start(GRAMMARS[2], [END])
    other.wait()
    process = grammars._process.pid
    copies = Path(f"/proc/{process}/task/{process}/children")
    hostile = grammars.start(HOSTILE["never ends"], [END])
    wait_until(lambda: len(copies.read_text().split()) == 2)
    hostile.close()
    wait_until(lambda: not grammars.full)
    assert len(copies.read_text().split()) == 1 and other.legal(300).any()
    grammars.close()


def test_one_device_has_a_share_of_the_places_and_pays_for_a_slow_grammar(tokenizer_file):
    limits = GrammarLimits(processes=4, device_share=0.5, compile_s=0.1)
    grammars = Grammars(tokenizer_file, [END], limits)
    masks = [grammars.start(GRAMMARS[2], [END], b"one") for _ in range(2)]
    assert grammars.lacks_place(b"one") and not grammars.lacks_place(b"two")
    assert not grammars.penalty_s(b"one")
    slow = grammars.start(HOSTILE["never ends"], [END], b"two")
    with pytest.raises(UsageError, match="too much time"):
        slow.wait()
    assert grammars.penalty_s(b"two") > 20 and not grammars.penalty_s(b"one")
    assert all(mask.legal(300).any() for mask in masks)
    grammars.close()


def test_without_the_package_the_sentence_says_what_to_install(grammars, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UsageError, match=r"pip install 'edgespec\[grammar\]'"):
        grammars.start(GRAMMARS[2], [END])


def test_any_thread_may_start_an_answer(tokenizer_file):
    grammars = Grammars(tokenizer_file, [END])
    with ThreadPoolExecutor(8) as threads:
        masks = list(threads.map(lambda _: grammars.start(GRAMMARS[2], [END]), range(40)))
    for mask in masks:
        mask.wait()
        assert (mask.legal(300) == masks[0].legal(300)).all()
    process = grammars._process
    grammars.close()
    assert process.returncode == 0 and all(mask.closed for mask in masks)


def test_what_native_code_says_is_not_shown(tokenizer_file, capfd):
    grammars = Grammars(tokenizer_file, [END])
    with pytest.raises(UsageError):
        grammars.start(HOSTILE["never ends"], [END]).wait()
    deep = "start: r0\n" + "".join(f'r{i}: r{i + 1} "a"\n' for i in range(3500)) + 'r3500: "a"'
    with suppress(UsageError):
        grammars.start(Grammar("lark", deep), [END]).wait()
    grammars.close()
    assert capfd.readouterr().err == ""


def test_the_process_is_started_again_if_it_was_killed(tokenizer_file):
    grammars = Grammars(tokenizer_file, [END])
    grammars.start(GRAMMARS[2], [END]).wait()
    grammars._process.kill()
    grammars._process.wait()
    mask = grammars.start(GRAMMARS[2], [END])
    mask.wait()
    assert mask.legal(300).any()
    grammars.close()
