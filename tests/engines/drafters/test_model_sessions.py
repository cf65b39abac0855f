"""A draft model for many sessions: every guess is that of the model alone."""

import random

import pytest

from edgespec.confidence import UNCALIBRATED
from edgespec.errors import EngineError
from edgespec.manifest import Calibration
from edgespec.sampling import Sampling
from engines.base import Row, final_choices
from engines.drafters.base import DraftRequest
from engines.drafters.model import PREFILL_CHUNK_TOKENS, ModelDrafter, judge
from engines.toy import ToyEngine

GREEDY, SAMPLED = Sampling(), Sampling(1.0, 0.9, seed=3)


class Counting(ToyEngine):
    """Remembers the rows of each batch, as (slot, start, tokens)."""

    def __init__(self, **options):
        super().__init__(**options)
        self.batches = []

    def run(self, rows):
        self.batches.append([(row.slot, row.start, len(row.tokens)) for row in rows])
        return super().run(rows)

    def fed(self):
        """Tokens that each row since the last call brought."""
        batches, self.batches = self.batches, []
        return [[tokens for _, _, tokens in rows] for rows in batches]


def guesses_of(drafter, texts, sampling=GREEDY):
    """The guesses for one text of each session, by session."""
    return drafter.guess([DraftRequest(n, text, sampling) for n, text in texts.items()])


def held(drafter):
    """Sessions that hold a slot, the least recently used first."""
    branches = sorted(drafter._branches(), key=lambda branch: branch.last_used)
    return [branch.session for branch in branches]


class Bench:
    """A drafter, and a model that nothing but the text at hand has ever touched."""

    def __init__(self, calibration=None, memory=0, **options):
        self.engine = Counting(**options)
        self.drafter = ModelDrafter(
            self.engine, "toy", calibration, branches=1, memory_bytes=memory
        )
        self._options = {**options, "slots": 1}
        self._calibration = calibration or UNCALIBRATED

    def alone(self, text, sampling):
        engine = ToyEngine(**self._options)
        (choices,) = final_choices(engine, [Row(engine.open(), 0, text)])
        return judge(choices, self._calibration, DraftRequest(0, text, sampling))

    def ask(self, texts, sampling=GREEDY):
        """By session; every guess is checked. What was fed for it."""
        guesses = guesses_of(self.drafter, texts, sampling)
        assert guesses == [self.alone(text, sampling) for text in texts.values()]
        return self.engine.fed()

    @property
    def held(self):
        return held(self.drafter)


def test_each_session_has_a_slot_and_only_what_is_new_is_fed():
    bench = Bench()
    texts = {7: [1, 2, 3], 9: [4, 5], 8: [1, 2, 3]}
    assert bench.ask(texts) == [[3, 2, 3]]
    slots = {slot for slot, _, _ in bench.engine.batches}
    for text in texts.values():
        text.append(6)
    assert bench.ask(texts) == [[1, 1, 1]]
    assert bench.ask({9: texts[9]}) == [[1]], "the last token again"
    texts[9] += [7, 8]
    assert bench.ask({9: texts[9], 7: texts[7]}) == [[2, 1]]
    assert bench.held == [8, 9, 7]
    slots = {branch.slot for branch in bench.drafter._branches()}
    assert len(slots) == 3
    bench.drafter.retain({8, 7, 99})
    assert bench.held == [8, 7]
    assert bench.engine.open() in slots, "it was given back"


@pytest.mark.parametrize(
    ("before", "text", "fed"),
    [
        # Rejected: the last of three drafted ids is another's, and one more was committed.
        ([1, 2, 3, 4, 5, 6], [1, 2, 3, 4, 5, 9, 8], 2),
        # The first one.
        ([1, 2, 3, 4, 5, 6], [1, 2, 3, 9], 1),
        # It is shorter than what is held: the last token is fed again.
        ([1, 2, 3, 4, 5, 6], [1, 2, 3, 4], 1),
        ([1, 2, 3, 4, 5, 6], [1, 2, 3, 4, 5, 6], 1),
        # Nothing in common.
        ([1, 2, 3, 4, 5, 6], [9, 2, 3], 3),
        ([1, 2, 3], [9], 1),
    ],
)
def test_what_a_verdict_rejected_is_covered_by_what_comes_in_its_place(before, text, fed):
    bench = Bench()
    bench.ask({1: before})
    assert bench.ask({1: text}) == [[fed]]
    assert bench.ask({1: [*text, 3, 4]}) == [[2]]


def test_where_slots_are_few_who_was_not_asked_for_longest_gives_way():
    bench = Bench(slots=2)
    texts = {n: [n, 2, 3] for n in range(4)}
    bench.ask({0: texts[0]})
    bench.ask({1: texts[1]})
    bench.ask({0: texts[0]})
    assert bench.ask({2: texts[2]}) == [[3]]
    assert bench.held == [0, 2], "1 was not asked for since"
    assert bench.ask({0: [*texts[0], 5]}) == [[1]], "0 still has its own"
    # More than there are slots: in steps, each of as many as fit.
    assert bench.ask(texts) == [[1, 3], [3, 3]]
    assert bench.held == [2, 3]


@pytest.mark.parametrize(("slots", "memory"), [(1, 0), (2, 0), (5, 0), (9, 0), (9, 2), (9, 3)])
@pytest.mark.parametrize("sampling", [GREEDY, SAMPLED], ids=["greedy", "sampled"])
def test_whatever_came_before_a_guess_is_the_models_own(slots, memory, sampling):
    """Sessions that come, go on, are rolled back, leave and come again; `memory` in slots."""
    bench = Bench(slots=slots, memory=memory * ToyEngine().slot_bytes(1), noise=0.3)
    chance, texts = (
        random.Random(slots + 10 * memory),
        {n: [n + 1] * (3 + 40 * n) for n in range(7)},
    )
    for _ in range(120):
        asked = chance.sample(range(7), chance.randint(1, 5))
        for number in asked:
            text = texts[number]
            del text[max(1, len(text) - chance.choice([0, 0, 1, 2, 5])) :]
            text += [chance.randrange(50) for _ in range(chance.choice([0, 1, 1, 2, 6, 70]))]
            del text[400:]
        bench.ask({number: texts[number] for number in asked}, sampling)
        if chance.random() < 0.1:
            gone = chance.randrange(7)
            bench.drafter.retain(set(range(7)) - {gone})
            assert gone not in bench.held
            texts[gone] = [chance.randrange(50)]
    assert len(bench.held) <= slots


def test_long_texts_are_read_in_chunks():
    bench = Bench()
    text = [number % 50 for number in range(2 * PREFILL_CHUNK_TOKENS + 10)]
    assert bench.ask({1: text}) == [[PREFILL_CHUNK_TOKENS], [PREFILL_CHUNK_TOKENS], [10]]
    assert bench.ask({1: [*text, 1]}) == [[1]]


def test_texts_beyond_the_context_have_no_guess():
    bench = Bench(context=10)
    guesses = guesses_of(bench.drafter, {1: [1] * 11, 2: [2, 3], 3: []})
    assert [guess is None for guess in guesses] == [True, False, True]
    assert bench.held == [2]


def test_ids_that_a_smaller_vocabulary_lacks_become_0():
    bench = Bench(vocabulary=20)
    (guess,) = guesses_of(bench.drafter, {1: [3, 45, 4]})
    assert guess == bench.alone([3, 0, 4], GREEDY)
    (guess,) = guesses_of(bench.drafter, {1: [3, 45, 30]})
    assert guess == bench.alone([3, 0, 0], GREEDY)


def test_guesses_are_calibrated():
    cautious = Calibration(agreement=0.5, slope=0.0, offset=-1.0, error=0.0, tokens=9)
    Bench(cautious).ask({1: [1, 2, 3]})


def test_a_failed_step_leaves_a_cache_that_is_known():
    bench, fail = Bench(), True
    bench.ask({1: [1, 2, 3]})
    run = bench.engine.run

    def failing(rows):
        if fail:
            raise EngineError("no memory")
        return run(rows)

    bench.engine.run = failing
    texts = ([1, 2, 3, 4], [1, 2, 5], [1] * (3 * PREFILL_CHUNK_TOKENS))
    for text in texts:
        with pytest.raises(EngineError):
            guesses_of(bench.drafter, {1: text, 2: [9, *text]})
    fail = False
    for text in (*texts, [1, 2, 3]):
        bench.ask({1: text, 2: [9, *text]})


def test_the_bound_in_bytes_is_kept_by_closing_the_least_recently_used():
    slot = ToyEngine().slot_bytes(1)
    bench = Bench(memory=3 * slot)
    texts = {n: [n] * 200 for n in range(4)}

    def ask(*sessions):
        bench.ask({n: texts[n] for n in sessions})

    ask(0, 1, 2)
    ask(0)
    ask(3)
    assert bench.held == [2, 0, 3]
    texts[0] += [0] * 100
    ask(0)
    assert bench.held == [3, 0]
    ask(0, 1, 2, 3)
    texts[1] += [1] * 200
    texts[2] += [2] * 200
    ask(0, 1, 2, 3)
    branches = bench.drafter._branches()
    assert sum(bench.engine.slot_bytes(len(branch.tokens)) for branch in branches) <= 3 * slot


@pytest.mark.parametrize(("slots", "memory"), [(4, 0), (9, 0), (2, 0), (9, 3)])
def test_sessions_with_branches_and_sampling_of_their_own_share_steps(slots, memory):
    """Several answers of one device: branches fork, sessions come and go."""
    options = {"slots": slots, "noise": 0.3}
    engine = Counting(**options)
    size = memory * engine.slot_bytes(1)
    drafter = ModelDrafter(engine, "toy", branches=3, memory_bytes=size)
    chance, samplings = random.Random(slots + memory), {1: GREEDY, 2: SAMPLED, 3: GREEDY}
    texts = {number: [[number, 2, 3]] for number in samplings}
    reference = Bench(**options)
    for _ in range(150):
        requests = []
        for number in chance.sample([1, 2, 3], chance.randint(1, 3)):
            for _ in range(chance.randint(1, 2)):
                base = chance.choice(texts[number][-6:])
                kept = base[: max(1, len(base) - chance.randint(0, 3))]
                text = kept + [chance.randrange(50) for _ in range(chance.choice([0, 1, 2, 90]))]
                texts[number].append(text[:400])
                requests.append(DraftRequest(number, text[:400], samplings[number]))
        guesses = drafter.guess(requests)
        assert guesses == [reference.alone(r.tokens, r.sampling) for r in requests]
        assert len(drafter._branches()) <= slots
        assert all(len(branches) <= 3 for branches in drafter._sessions.values())
        if chance.random() < 0.1:
            kept = set(chance.sample([1, 2, 3], 2))
            drafter.retain(kept)
            assert set(drafter._sessions) <= kept


def test_another_sessions_fork_does_not_take_a_sessions_only_slot():
    engine = Counting(slots=3)
    drafter = ModelDrafter(engine, "toy")
    main, other = [*range(20)], [9, 8, 7]

    def fed(*requests):
        drafter.guess([DraftRequest(number, text, GREEDY) for number, text in requests])
        return engine.fed()

    assert fed((1, main)) == [[20]]
    assert fed((1, [*main[:10], 40])) == [[1]]
    assert fed((2, other)) == [[3]]
    assert fed((2, [*other[:2], 40])) == [[1]], "it takes a branch of session 1"
    assert fed((2, [*other[:2], 41])) == [[1]]
    assert len(drafter._sessions[1]) == 1
    assert fed((2, [*other, 6])) == [[1]]
