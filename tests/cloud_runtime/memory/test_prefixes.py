"""The search agrees with comparing every text, and says who shares most first."""

import random

import pytest

from cloud_runtime.memory.prefixes import Prefixes, count, packed, shared

LEAST = 8


@pytest.mark.parametrize(
    ("one", "other", "tokens"),
    [
        ([], [1], 0),
        ([1, 2, 3], [1, 2, 3], 3),
        ([1, 2, 3], [1, 2, 3, 4], 3),
        ([1, 2, 3], [1, 9, 3], 1),
        ([256, 1], [257, 1], 0),
        ([5], [6], 0),
    ],
)
def test_tokens_in_common(one, other, tokens):
    assert shared(packed(one), packed(other)) == shared(packed(other), packed(one)) == tokens
    assert count(packed(one)) == len(one)


@pytest.mark.parametrize("seed", range(20))
def test_all_that_begin_alike_are_found_the_most_first(seed):
    chance = random.Random(seed)
    store = Prefixes(LEAST)
    texts = {}

    def text():
        """Texts of few ids that branch off one another."""
        base = chance.choice([[], *texts.values()])
        cut = base[: chance.randrange(len(base) + 1)]
        return cut + [chance.randrange(3) << chance.choice([0, 8]) for _ in range(20)]

    for number in range(60):
        texts[number] = text()
        store.add(packed(texts[number]), number)
        if chance.random() < 0.3:
            gone = chance.choice(list(texts))
            store.remove(packed(texts.pop(gone)), gone)
    assert len(store) == len(texts)
    for _ in range(20):
        query = packed(text())
        found = list(store.like(query))
        every = {n: shared(query, packed(t)) for n, t in texts.items()}
        assert {n: tokens for tokens, n in found} == {n: s for n, s in every.items() if s >= LEAST}
        assert [tokens for tokens, _ in found] == sorted((t for t, _ in found), reverse=True)
