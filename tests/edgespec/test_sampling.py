"""The rule, by hand and by distribution."""

import math

import numpy as np
import pytest
from scipy import stats

from edgespec.errors import UsageError
from edgespec.sampling import (
    RUNNERS_UP,
    Sampling,
    agreeing,
    choose,
    common_prefix,
    guess,
    gumbel_noise,
    keep,
    rank,
    verify,
)


@pytest.mark.parametrize(
    ("draft", "target", "accepted", "tokens"),
    [
        ([], [7], 0, [7]),
        ([1, 2, 3], [1, 2, 3, 4], 3, [1, 2, 3, 4]),
        ([1, 2, 3], [1, 9, 3, 4], 1, [1, 9]),
        ([1, 2, 3], [9, 2, 3, 4], 0, [9]),
        ([5], [5, 5], 1, [5, 5]),
    ],
)
def test_verify_keeps_the_matching_prefix_and_the_targets_next(draft, target, accepted, tokens):
    assert verify(draft, target) == (accepted, tokens)


def test_verify_wants_one_target_token_more_than_drafted():
    with pytest.raises(ValueError, match="2 target tokens for a draft of 2"):
        verify([1, 2], [1, 2])


def test_prefix_and_agreement_are_different_things():
    assert common_prefix([1, 2, 3, 4], [1, 9, 3]) == 1
    assert agreeing([1, 2, 3, 4], [1, 9, 3]) == 2


def test_greedy_takes_the_first_of_equals():
    assert choose(np.array([0.0, 2.0, 2.0]), Sampling(), 5) == 1


@pytest.mark.parametrize(
    ("sampling", "kept"),
    [
        (Sampling(1.0), [0, 1, 2, 3, 4]),
        (Sampling(1.0, top_k=2), [0, 3]),
        (Sampling(1.0, top_p=0.4), [3]),
        (Sampling(1.0, top_p=0.75), [0, 3]),
        (Sampling(1.0, top_p=0.81), [0, 1, 3]),
        (Sampling(1.0, top_p=0.99, top_k=3), [0, 1, 3]),
        (Sampling(0.01, top_p=0.9), [3]),
    ],
)
def test_top_k_and_top_p_keep_the_likeliest(sampling, kept):
    logits = np.log(np.array([0.3, 0.1, 0.06, 0.5, 0.04]))
    assert keep(logits, sampling).tolist() == kept


def test_top_k_takes_the_lowest_ids_of_equals():
    assert keep(np.array([1.0, 1.0, 1.0, 2.0]), Sampling(1.0, top_k=2)).tolist() == [0, 3]


def test_noise_is_a_function_of_seed_position_and_token_alone():
    some = gumbel_noise(7, 100, np.array([3, 9]), 50)
    all_of_more = gumbel_noise(7, 100, np.arange(64), 64)
    assert some.tolist() == all_of_more[[3, 9]].tolist()
    assert not np.array_equal(all_of_more, gumbel_noise(7, 101, np.arange(64), 64))
    assert not np.array_equal(all_of_more, gumbel_noise(8, 100, np.arange(64), 64))


def philox_4x64(counter, key):
    """Philox4x64-10 from its paper (Salmon et al. 2011), to hold numpy's stream against."""
    mask = 2**64 - 1
    k0, k1 = key, 0
    c0, c1, c2, c3 = counter
    for _ in range(10):
        p0, p1 = 0xD2E7470EE14C6C93 * c0, 0xCA5A826395121157 * c2
        c0, c1, c2, c3 = p1 >> 64 ^ c1 ^ k0, p1 & mask, p0 >> 64 ^ c3 ^ k1, p0 & mask
        k0, k1 = k0 + 0x9E3779B97F4A7C15 & mask, k1 + 0xBB67AE8584CAA73B & mask
    return c0, c1, c2, c3


def test_noise_is_philox_keyed_by_seed_and_counted_by_position():
    """The same text on another server and after an upgrade: the stream is written down here."""
    words = [word for block in (1, 2) for word in philox_4x64((block, 2, 0, 0), 1)]
    uniform = [((word >> 11) + 0.5) * 2.0**-53 for word in words]
    expected = [-math.log(-math.log(u)) for u in uniform]
    assert gumbel_noise(1, 2, np.arange(8), 8) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("temperature", [0.7, 1.0])
@pytest.mark.parametrize("top_p", [1.0, 0.9])
def test_sampling_follows_the_targets_distribution(temperature, top_p):
    logits = np.random.default_rng(3).standard_normal(12) * 0.7
    sampling = Sampling(temperature, top_p)
    kept = keep(logits, sampling)
    p = np.exp(logits[kept] / temperature)
    p /= p.sum()
    drawn = 20_000
    tokens = [
        choose(logits, Sampling(temperature, top_p, seed=seed), position)
        for seed in range(100)
        for position in range(drawn // 100)
    ]
    counts = np.array([tokens.count(int(token)) for token in kept])
    assert counts.sum() == drawn
    assert stats.chisquare(counts, p * drawn).pvalue > 1e-3


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize("spread", [0.0, 0.1, 1.0, 5.0, 40.0, 1000.0])
@pytest.mark.parametrize("temperature", [0.01, 0.1, 1.0, 3.0])
def test_the_short_cut_finds_the_same_winner(spread, temperature, dtype):
    logits = (np.random.default_rng(1).standard_normal(3000) * spread + spread).astype(dtype)
    everyone = np.arange(3000)
    for position in range(40):
        noise = gumbel_noise(5, position, everyone, 3000)
        expected = np.argmax(logits.astype(np.float64) / temperature + noise)
        assert choose(logits, Sampling(temperature, seed=5), position) == expected


@pytest.mark.parametrize(
    "sampling", [Sampling(), Sampling(0.7, 0.9, seed=2), Sampling(1.0, seed=2)]
)
def test_a_guess_from_the_top_is_nearly_always_the_choice(sampling):
    logits = np.random.default_rng(1).standard_normal((200, 3000)) * 6
    top = np.argsort(-logits, kind="stable")[:, :64]
    same = [
        guess(ids, row[ids], sampling, position, 3000) == choose(row, sampling, position)
        for position, (ids, row) in enumerate(zip(top, logits, strict=True))
    ]
    assert np.mean(same) == 1.0 if sampling.greedy else np.mean(same) > 0.9


def test_a_near_copy_of_the_target_draws_nearly_the_same_tokens():
    """Coupling: with shared noise two close distributions agree nearly as often as they can."""
    generator = np.random.default_rng(0)
    logits = generator.standard_normal((2000, 30)) * 2
    close = logits + generator.standard_normal(logits.shape) * 0.2
    sampling = Sampling(1.0, seed=4)
    same = np.mean(
        [
            choose(a, sampling, i) == choose(b, sampling, i)
            for i, (a, b) in enumerate(zip(logits, close, strict=True))
        ]
    )

    def softmax(x):
        e = np.exp(x - x.max(-1, keepdims=True))
        return e / e.sum(-1, keepdims=True)

    best = np.mean(np.minimum(softmax(logits), softmax(close)).sum(-1))
    assert best - 0.06 < same <= best + 0.02


@pytest.mark.parametrize(
    ("sampling", "name"),
    [
        (Sampling(-0.1), "temperature"),
        (Sampling(1e-9), "temperature"),
        (Sampling(101.0), "temperature"),
        (Sampling(float("nan")), "temperature"),
        (Sampling(1.0, top_p=0.0), "top-p"),
        (Sampling(1.0, top_p=1.1), "top-p"),
        (Sampling(1.0, top_k=-1), "top-k"),
        (Sampling(1.0, top_k=10**30), "top-k"),
        (Sampling(1.0, seed=-1), "seed"),
        (Sampling(1.0, seed=2**63), "seed"),
    ],
)
def test_parameters_out_of_range_are_named(sampling, name):
    with pytest.raises(UsageError, match=name):
        sampling.check()


RULES = [
    Sampling(temperature, top_p, top_k, seed=9)
    for temperature in (0.0, 0.01, 0.7, 1.0, 3.0)
    for top_p, top_k in ((1.0, 0), (0.9, 0), (1.0, 1), (1.0, 7), (0.5, 20))
]


@pytest.mark.parametrize("sampling", RULES, ids=str)
@pytest.mark.parametrize("spread", [0.0, 1.0, 6.0])
def test_rank_is_the_choice_and_the_next_best_scores(spread, sampling):
    generator = np.random.default_rng(2)
    for position in range(25):
        logits = np.round(generator.standard_normal(60) * spread).astype(np.float32)  # many ties
        scores = logits.astype(np.float64)
        if not sampling.greedy:
            noise = gumbel_noise(sampling.seed, position, np.arange(60), 60)
            scores = logits / np.float64(sampling.temperature) + noise
            scores *= sampling.temperature
        first = choose(logits, sampling, position)
        others = [token for token in range(60) if token != first]
        best = sorted(others, key=lambda token: (-scores[token], token))[:RUNNERS_UP]
        token, odds, runners_up = rank(logits, sampling, position)
        assert (token, [other for other, _ in runners_up]) == (first, best)
        weights = np.exp(scores - scores.max())
        rest = weights[others].sum()
        assert [share for _, share in runners_up] == pytest.approx(list(weights[best] / rest))
        if weights[first] > 1e-200 and rest > 1e-200:
            assert odds == pytest.approx(np.log(weights[first] / rest))


def test_rank_weighs_only_the_candidates_that_it_is_given():
    logits = np.array([0.0, 5.0, 4.0, 3.0])
    rest = math.exp(3) + 1
    assert rank(logits, Sampling(), 0, np.array([3, 0])) == (
        1,
        pytest.approx(5 - math.log(rest)),
        ((3, pytest.approx(math.exp(3) / rest)), (0, pytest.approx(1 / rest))),
    )


def test_rank_of_a_single_token_has_no_runner_up():
    for sampling in (Sampling(), Sampling(0.7, 0.9)):
        assert rank(np.array([2.0]), sampling, 3) == (0, math.inf, ())
        assert rank(np.array([2.0, -np.inf]), sampling, 3) == (0, math.inf, ())
        ranked = rank(np.array([2.0, -np.inf, 1.0]), sampling, 3, np.arange(3))
        assert [share for _, share in ranked.runners_up] == [1.0], "one that cannot be is none"


def test_common_prefixes_are_those_of_a_walk():
    pick = np.random.default_rng(0)
    for length in (0, 1, 2, 31, 32, 33, 64, 100, 1000):
        one = pick.integers(0, 9, length).tolist()
        assert common_prefix(one, tuple(one)) == length
        for at in {0, 1, length // 2, length - 40, length - 2, length - 1} & set(range(length)):
            other = [*one[:at], 10, *one[at + 1 :], 7]
            assert common_prefix(one, other) == common_prefix(other, one) == at
            assert common_prefix(one[:at], other) == at


@pytest.mark.parametrize("kind", [np.float32, np.float16, np.float64])
@pytest.mark.parametrize("size", [50, 4096, 4099])
@pytest.mark.parametrize("spread", [0.1, 2.0, 10.0])
def test_what_is_kept_is_what_sorting_keeps(kind, size, spread):
    """Also with ties: float16 has few values."""
    logits = (np.random.default_rng(0).standard_normal(size) * spread).astype(kind)
    order = np.argsort(-logits, kind="stable")
    for top_k in (1, 5, 40, 64, 1500):
        kept = keep(logits, Sampling(1.0, top_k=top_k))
        assert kept.tolist() == sorted(order[:top_k].tolist())
    mass = np.exp(logits[order].astype(np.float64) - float(logits.max()))
    before = np.cumsum(mass) - mass
    for top_p in (0.05, 0.5, 0.9, 0.999):
        kept = keep(logits, Sampling(1.0, top_p=top_p))
        assert kept.tolist() == sorted(order[before < top_p * mass.sum()].tolist())
