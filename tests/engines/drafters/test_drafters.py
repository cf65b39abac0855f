"""Guesses along any tree of texts are a fresh model's, and only what is missing is fed."""

import math
import random

import pytest

from edgespec.errors import EngineError
from edgespec.manifest import Calibration
from edgespec.sampling import RUNNERS_UP, Sampling, choose, rank
from engines.base import Row, final_choices
from engines.drafters.base import DraftRequest, Guess, draft_tokens
from engines.drafters.model import PREFILL_CHUNK_TOKENS, ModelDrafter
from engines.drafters.ngram import NgramDrafter
from engines.drafters.none import NoDrafter
from engines.toy import ToyEngine

GREEDY, SAMPLED = Sampling(), Sampling(1.0, seed=3)


class Counting(ToyEngine):
    """Remembers the rows of each batch, as (start, tokens)."""

    def __init__(self, *args, **options):
        super().__init__(*args, **options)
        self.batches = []

    def run(self, rows):
        self.batches.append([(row.start, list(row.tokens)) for row in rows])
        return super().run(rows)

    def fed(self):
        """How many tokens each row since the last call brought."""
        batches, self.batches = self.batches, []
        return [[len(tokens) for _, tokens in rows] for rows in batches]


def ask(drafter, texts, sampling):
    """The drafter's guesses for branches of one session."""
    return drafter.guess([DraftRequest(0, text, sampling) for text in texts])


def choices_of(text, engine):
    slot = engine.open()
    (choices,) = final_choices(engine, [Row(slot, 0, text)])
    engine.close(slot)
    return choices


def alone(text, sampling, engine):
    """The model's token, without a drafter."""
    return choose(choices_of(text, engine).logits[0], sampling, len(text))


def written(text, count, sampling):
    text = list(text)
    for _ in range(count):
        text.append(alone(text, sampling, ToyEngine()))
    return text[-count:]


@pytest.mark.parametrize("sampling", [GREEDY, SAMPLED], ids=["greedy", "sampled"])
@pytest.mark.parametrize("slots", [1, 2, 4])
def test_guesses_along_any_tree_are_a_fresh_models(slots, sampling):
    pick, reference = random.Random(slots), ToyEngine()
    drafter = ModelDrafter(Counting(), "toy", branches=slots)
    texts = [[1, 2, 3]]
    for _ in range(150):
        asked = []
        for _ in range(pick.randint(1, 3)):
            base = pick.choice(texts[-12:])
            kept = base[: max(1, len(base) - pick.randint(0, 3))]
            asked.append(kept + [pick.randrange(50) for _ in range(pick.choice([0, 1, 1, 2, 90]))])
            asked[-1] = asked[-1][:500]
        guesses = ask(drafter, asked, sampling)
        assert [g.token for g in guesses] == [alone(t, sampling, reference) for t in asked]
        texts += asked
        if pick.random() < 0.02:
            drafter.retain(())


def test_a_guess_says_how_sure_it_is_and_what_else_it_may_be():
    text = [1, 2, 3]
    choices = choices_of(text, ToyEngine())
    for sampling in (GREEDY, SAMPLED, Sampling(0.7, 0.5, seed=1), Sampling(0.7, top_k=1)):
        expected = rank(choices.logits[0], sampling, len(text))
        (guess,) = ask(ModelDrafter(ToyEngine(), "toy"), [text], sampling)
        assert guess.token == expected.token
        assert [other for other, _ in guess.runners_up] == [
            other for other, _ in expected.runners_up
        ]
        assert len(guess.runners_up) == RUNNERS_UP
        chances = [confidence for _, confidence in guess.runners_up]
        assert 0 < sum(chances) < 1 - guess.confidence < 1
        assert chances == sorted(chances, reverse=True)
        cautious = Calibration(agreement=0.5, slope=0.0, offset=-1.0, error=0.0, tokens=9)
        (less,) = ask(ModelDrafter(ToyEngine(), "toy", cautious), [text], sampling)
        assert less.confidence == pytest.approx(1 / (1 + math.exp(1 - sampling.temperature**2)))
        assert [
            confidence / (1 - less.confidence) for _, confidence in less.runners_up
        ] == pytest.approx([confidence / (1 - guess.confidence) for confidence in chances])


def test_only_missing_tokens_are_fed():
    engine = Counting()
    drafter = ModelDrafter(engine, "toy")
    main = list(range(20))

    def fed(*texts):
        ask(drafter, texts, GREEDY)
        return engine.fed()

    assert fed(main) == [[20]]
    assert fed([*main, 20]) == [[1]]
    assert fed([*main[:-2], 7]) == [[1]], "a branch three back is copied"
    assert fed([*main, 20, 21]) == [[1]], "the main path is still there"
    assert fed([*main, 20, 21]) == [[1]], "the last token again"
    assert fed(main) == [[1]], "a beginning of the main path is a branch of its own"
    assert fed([*main, 20, 21, 22]) == [[1]]
    assert fed([*main, 20, 21, 22, 23], [*main, 20, 21, 9], [*main, 20, 8]) == [[1, 1, 1]]
    assert fed([*main, 20, 21, 22, 23, 24], [*main, 20, 21, 9, 9, 9]) == [[1, 2]]


def test_two_slots_keep_the_main_path_through_many_branches():
    engine = Counting(slots=2)
    drafter = ModelDrafter(engine, "toy", branches=2)
    main = list(range(30))
    ask(drafter, [main], GREEDY)
    engine.fed()
    for token in range(5):
        ask(drafter, [[*main[:-1], 40 + token]], GREEDY)
        main.append(token)
        ask(drafter, [main], GREEDY)
    assert engine.fed() == [[1]] * 10


def test_prompts_are_read_in_chunks_and_once_for_several_texts():
    engine = Counting()
    prompt = [number % 50 for number in range(2 * PREFILL_CHUNK_TOKENS + 10)]
    ask(ModelDrafter(engine, "toy"), [[*prompt, 1], [*prompt, 2]], GREEDY)
    assert engine.fed() == [[PREFILL_CHUNK_TOKENS], [PREFILL_CHUNK_TOKENS], [11, 11]]


def test_an_engine_with_fewer_slots_gives_what_it_has():
    engine = ToyEngine(slots=1)
    drafter = ModelDrafter(engine, "toy")
    texts = [[1, 2, 3], [1, 2, 4], [5]]
    guesses = ask(drafter, texts, GREEDY)
    assert [g.token for g in guesses] == [alone(t, GREEDY, ToyEngine()) for t in texts]
    with pytest.raises(EngineError, match="slots"):
        ask(ModelDrafter(engine, "toy"), texts, GREEDY)
    drafter.retain(())
    assert engine.open() == 0


def test_a_failed_step_leaves_a_cache_that_is_known():
    class Failing(ToyEngine):
        fail = False

        def run(self, rows):
            if self.fail:
                raise EngineError("no")
            return super().run(rows)

    engine = Failing()
    drafter = ModelDrafter(engine, "toy")
    ask(drafter, [[1, 2, 3]], GREEDY)
    engine.fail = True
    for text in ([1, 2, 3, 4], [1, 2, 5], list(range(40)) * 4):
        with pytest.raises(EngineError):
            ask(drafter, [text], GREEDY)
    engine.fail = False
    for text in ([1, 2, 3, 4], [1, 2, 5], list(range(40)) * 4, [1, 2, 3]):
        assert ask(drafter, [text], GREEDY)[0].token == alone(text, GREEDY, ToyEngine())


@pytest.mark.parametrize("sampling", [GREEDY, SAMPLED], ids=["greedy", "sampled"])
def test_a_model_drafts_what_it_would_write_whatever_was_rejected_before(sampling):
    drafter = ModelDrafter(ToyEngine(), "toy")
    texts = [[1], [1, 2, 3], [1, 2, 3, 9, 9], [1, 2, 3, 9, 9, 4], list(range(1, 40)) * 3]
    for text in texts:
        for count in (1, 4, 3):
            assert draft_tokens(drafter, text, count, sampling) == written(text, count, sampling)
    drafter.retain(())
    assert draft_tokens(drafter, [5, 5], 3, sampling) == written([5, 5], 3, sampling)


def test_a_model_stops_at_its_context():
    drafter = ModelDrafter(ToyEngine(context=10), "toy")
    assert len(draft_tokens(drafter, [1] * 8, 5, GREEDY)) == 3
    assert len(draft_tokens(drafter, [1] * 10, 5, GREEDY)) == 1
    guesses = ask(drafter, [[1] * 11, [2, 3], []], GREEDY)
    assert [guess is None for guess in guesses] == [True, False, True]


def test_ids_that_a_small_vocabulary_lacks_become_0():
    drafter, engine = ModelDrafter(ToyEngine(20), "small"), ToyEngine(20)
    (guess,) = ask(drafter, [[3, 45, 4]], GREEDY)
    assert guess.token == alone([3, 0, 4], GREEDY, engine)
    (guess,) = ask(drafter, [[3, 45, 30]], GREEDY)
    assert guess.token == alone([3, 0, 0], GREEDY, engine)


def test_logits_that_are_not_finite_are_no_guess():
    class Broken(ToyEngine):
        def run(self, rows):
            for step in super().run(rows):
                for choices in step.choices:
                    if choices is not None:
                        choices.top_logits[:] = float("nan")
                yield step

    assert ask(ModelDrafter(Broken(), "toy"), [[1, 2]], GREEDY) == [None]


@pytest.mark.parametrize(
    ("text", "count", "drafted"),
    [
        ([1, 2, 3, 4, 1, 2], 2, [3, 4]),
        ([1, 2, 3, 9, 1, 2, 4, 1, 2], 1, [4]),
        ([5, 1, 2, 3, 6, 1, 2, 4, 5, 1, 2], 1, [3]),
        ([7, 8, 7, 8], 5, [7, 8, 7, 8, 7]),
        ([1, 2, 3], 4, []),
        ([1], 4, []),
    ],
)
def test_prompt_lookup_takes_the_longest_then_latest_ending(text, count, drafted):
    assert draft_tokens(NgramDrafter(), text, count, GREEDY) == drafted


def test_prompt_lookup_learns_as_the_text_grows():
    drafter = NgramDrafter()
    text = [1, 2, 3, 4]
    assert draft_tokens(drafter, text, 2, GREEDY) == []
    text += [5, 1, 2]
    assert draft_tokens(drafter, text, 3, GREEDY) == [3, 4, 5]
    drafter.retain(())
    assert draft_tokens(drafter, [1, 2], 2, GREEDY) == []


def test_prompt_lookup_along_any_tree_is_that_of_the_text_alone():
    pick = random.Random(0)
    drafter, texts, found = NgramDrafter(), [[1, 2, 3]], 0
    for _ in range(300):
        base = pick.choice(texts[-6:])
        text = base[: max(0, len(base) - pick.randint(0, 5))]
        text = text + [pick.randrange(4) for _ in range(pick.randint(0, 9))]
        assert ask(drafter, [text], GREEDY) == ask(NgramDrafter(), [text], GREEDY)
        found += ask(drafter, [text], GREEDY) != [None]
        texts.append(text)
    assert found > 200


def test_prompt_lookup_is_surer_the_more_agrees_and_the_more_was_right():
    assert ask(NgramDrafter(), [[1, 2, 3, 1, 2]], GREEDY) == [Guess(3, 0.5)]
    assert ask(NgramDrafter(), [[*range(9), 20, *range(9)]], GREEDY) == [Guess(20, 9 / 11)]
    (often,) = ask(NgramDrafter(), [[1, 2, 3, 4, 5] * 20], GREEDY)
    assert often.token == 1 and often.confidence > 0.95
    seldom = [token for number in range(30) for token in (1, 2, 10 + number)]
    (guess,) = ask(NgramDrafter(), [[*seldom, 1, 2]], GREEDY)
    assert guess.token == 39 and guess.confidence < 0.3


def test_nobody_drafts_nothing():
    assert ask(NoDrafter(), [[1], [2]], GREEDY) == [None, None]
    assert draft_tokens(NoDrafter(), [1], 3, GREEDY) == []
