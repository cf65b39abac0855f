"""The acceptance rule: the target's token at a position, and how a draft is verified against it.

The token at position `i` is a pure function of the prefix (by the model's logits), the sampling
parameters, the seed and `i`. The steps and their order are those of vLLM:

    1  masks                  minus infinity for tokens that a grammar rules out
    2  logit bias             logit += bias
    3  repetition penalty r   tokens of prompt and answer: logit / r above 0, else logit * r
    4  frequency penalty f    logit -= f * (number of times that the token is in the answer)
    5  presence penalty       logit -= penalty, for tokens that are in the answer
       greedy                 argmax(logits)
    6  temperature            softmax(logits / temperature)
    7  min-p                  keeps p_v >= min_p * max p
    8  top-k                  keeps the k likeliest
    9  top-p                  keeps the likeliest of those left that reach top_p of their sum
       sampling               argmax(log p + g),  g_v = -log(-log u_v),
                              u = Philox4x64(key=seed, counter=i << 64)

Steps 1 to 5 depend on the tokens before `i` and are in `edgespec.adjustments`; `logits` here are
adjusted already.

The second line is the Gumbel-max trick (Gumbel 1954; Maddison et al. 2014): its result has exactly
the distribution p. The noise depends on (seed, i) only. A draft that picks its token with the same
noise therefore agrees with the target as often as their distributions allow, without a message
between them (coupling without communication, Daliri et al. 2408.07978), and every server gives the
same answer. Ties go to the lowest token id everywhere.

No other module compares tokens or draws noise.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from edgespec.sampling_parameters import Sampling as Sampling

Logits = npt.NDArray[np.floating]


@lru_cache(maxsize=64)
def _uniform_bits(seed: int, position: int, size: int) -> npt.NDArray[np.uint64]:
    bits = np.random.Philox(key=seed, counter=position << 64).random_raw(size)
    bits.setflags(write=False)
    return bits


def gumbel_noise(seed: int, position: int, ids: npt.NDArray[np.int64], size: int) -> Logits:
    """Gumbel noise of the tokens `ids` at `position`; float64, shape of `ids`.

    `size` is the size of the vocabulary. The noise of token v depends neither on the other `ids`
    nor on `size`, so models with differently padded embeddings share it. numpy guarantees that the
    raw stream of Philox is stable, which it does not for its floating-point generators. One cached
    draw serves exit heads, draft and target at the same position.
    """
    bits = _uniform_bits(seed, position, size)[ids]
    uniform = ((bits >> np.uint64(11)).astype(np.float64) + 0.5) * 2.0**-53
    return -np.log(-np.log(uniform))


def keep(logits: Logits, sampling: Sampling) -> npt.NDArray[np.int64]:
    """Ids that min-p, top-k and top-p keep, ascending. Shape [kept]; `logits` is [vocabulary]."""
    size = logits.shape[0]
    ids = np.arange(size)
    if 0 < sampling.top_k < size:
        least = _nth_largest(logits, sampling.top_k)
        above = np.flatnonzero(logits > least)
        ties = np.flatnonzero(logits == least)[: sampling.top_k - above.size]
        ids = np.sort(np.concatenate([above, ties]))
    if sampling.min_p > 0.0:  # after top-k, which gives the same ids and leaves fewer to compare
        floor = float(logits.max()) + sampling.temperature * np.log(sampling.min_p)
        ids = ids[logits[ids] >= np.float64(floor)]
    if sampling.top_p < 1.0:
        mass = logits[ids].astype(np.float64)
        # In place: allocating arrays of vocabulary size costs more than the arithmetic.
        np.exp(
            np.divide(np.subtract(mass, mass.max(), out=mass), sampling.temperature, out=mass),
            out=mass,
        )
        total = mass.sum()
        needed = sampling.top_p * total
        heavy = np.flatnonzero(mass > _NEAR)  # mostly enough, and far fewer to sort
        if mass[heavy].sum() < needed * (1.0 + 1e-9):
            # Tokens below this bound add up to less than 1 - top_p, so they need no sorting.
            heavy = np.flatnonzero(mass > (1.0 - sampling.top_p) * total / ids.size)
        order = heavy[np.argsort(-mass[heavy], kind="stable")]
        before = np.cumsum(mass[order]) - mass[order]
        ids = np.sort(ids[order[before < needed]])
    return ids


_NEAR = 1e-3
"""Mass, relative to the likeliest token's, of the tokens that are sorted first."""
_GROUP = 64
"""Logits of a group, of which only the largest is compared first."""


def _nth_largest(logits: Logits, n: int) -> float:
    """The n-th largest logit. It is not below the n-th largest maximum of any groups, so most
    logits need no sorting: for 40 of 49152 it takes 20 µs, and a partition of all 270."""
    groups = logits.shape[0] // _GROUP
    if n <= groups // 4 and not np.isnan(logits.max()):
        maxima = logits[: groups * _GROUP].reshape(_GROUP, groups).max(axis=0)
        maxima.partition(groups - n)
        logits = logits[logits >= maxima[groups - n]]
    size = logits.shape[0]
    return float(np.partition(logits, size - n)[size - n])


def likeliest(logits: Logits, count: int) -> npt.NDArray[np.int64]:
    """Ids of the `count` largest logits that are finite, ascending; more where some are equal."""
    least = _nth_largest(logits, min(count, logits.shape[0]))
    ids = np.flatnonzero(logits >= least)
    return ids[np.isfinite(logits[ids])]


def choose(logits: Logits, sampling: Sampling, position: int) -> int:
    """The token at `position`, given the logits there. `logits` is [vocabulary], any float type."""
    if sampling.greedy:
        return int(np.argmax(logits))
    if 0 < sampling.top_k < logits.shape[0] or sampling.top_p < 1.0 or sampling.min_p > 0.0:
        ids = keep(logits, sampling)
    else:
        ids = _contenders(logits, sampling, position)
    return int(ids[np.argmax(_perturbed(logits, ids, sampling, position))])


RUNNERS_UP = 3
"""Number of alternatives that `rank` returns with a choice."""


class Ranked(NamedTuple):
    """The rule's choice and its runners-up with their weights.

    A score is a logit, under sampling plus the noise `temperature * g`. Tokens that min-p, top-k or
    top-p remove have a weight too, since another model may keep them.
    """

    token: int
    odds: float
    """Log-odds of the choice against all others in the softmax of scores; infinite without any."""
    runners_up: tuple[tuple[int, float], ...]
    """Tokens with the next best scores, and the share of each in the weight of all tokens but the
    choice. At most `RUNNERS_UP`."""


def rank(
    logits: Logits, sampling: Sampling, position: int, top: npt.NDArray[np.int64] | None = None
) -> Ranked:
    """The token of `choose`, with runners-up among the ids `top` (any order; None: all ids).

    `logits` is [vocabulary]. Ties go to the lowest id.
    """
    token = choose(logits, sampling, position)
    ids = np.arange(logits.shape[0]) if top is None else np.sort(top)
    ids = np.append(ids[ids != token], token)
    scores: Logits = logits[ids].astype(np.float64)
    if not sampling.greedy:
        scores = sampling.temperature * _perturbed(logits, ids, sampling, position)
    own, others = float(scores[-1]), scores[:-1]
    if not others.size or others.max() == -np.inf:
        return Ranked(token, np.inf, ())
    best = np.argsort(-others, kind="stable")[:RUNNERS_UP]
    weights = np.exp(others - others[best[0]])
    odds = own - float(others[best[0]]) - float(np.log(weights.sum()))
    shares = weights[best] / weights.sum()
    ranked = zip(ids[best].tolist(), shares.tolist(), strict=True)
    return Ranked(token, odds, tuple((other, share) for other, share in ranked if share > 0))


def gap(logits: Logits, sampling: Sampling, position: int, one: int, other: int) -> float:
    """Score of token `one` minus that of token `other` (scores as in `Ranked`), in logits.

    `logits` is [vocabulary]. Infinite if min-p, top-k or top-p keeps only
    one of the two.
    """
    pair = np.array([one, other])
    if sampling.greedy:
        scores: Logits = logits[pair].astype(np.float64)
        return float(scores[0] - scores[1])
    kept = np.isin(pair, keep(logits, sampling))
    if kept[0] != kept[1]:
        return float(np.inf if kept[0] else -np.inf)
    scores = sampling.temperature * _perturbed(logits, pair, sampling, position)
    return float(scores[0] - scores[1])


def _perturbed(
    logits: Logits, ids: npt.NDArray[np.int64], sampling: Sampling, position: int
) -> Logits:
    noise = gumbel_noise(sampling.seed, position, ids, logits.shape[0])
    return logits[ids].astype(np.float64) / sampling.temperature + noise


def _contenders(logits: Logits, sampling: Sampling, position: int) -> npt.NDArray[np.int64]:
    """Ids, ascending, that certainly contain the choice, without a logarithm for every token.

    Scores of likely tokens are computed. Any other token lies `margin` or more below the largest
    logit, so it can win only with noise above a bound, which is a bound on its raw bits.
    """
    margin = 4.0 * sampling.temperature
    largest = float(logits.max())
    # Compared in float64 whatever the logits are: rounding must not push the edge up.
    likely = np.flatnonzero(logits >= np.float64(largest - margin))
    best = float(_perturbed(logits, likely, sampling, position).max())
    needed = np.exp(-np.exp((largest - margin) / sampling.temperature - best))
    # Lowered by more than rounding can add, so that no candidate is lost.
    least = np.uint64(max(0, int(needed * (1.0 - 1e-9) * 2.0**53) - 1) << 11)
    bits = _uniform_bits(sampling.seed, position, logits.shape[0])
    return np.union1d(likely, np.flatnonzero(bits >= least))


def guess(
    ids: npt.NDArray[np.int64], logits: Logits, sampling: Sampling, position: int, size: int
) -> int:
    """Token of `choose` among a head's top candidates only; for hints, which decide nothing."""
    if sampling.greedy:
        return int(ids[0])
    kept = keep(logits, sampling)
    noise = gumbel_noise(sampling.seed, position, ids[kept], size)
    return int(ids[kept[np.argmax(logits[kept].astype(np.float64) / sampling.temperature + noise)]])


class Verification(NamedTuple):
    accepted: int
    """Number of draft tokens that equal the target's."""
    tokens: list[int]
    """The `accepted + 1` tokens to commit: the accepted ones and the target's next."""


def verify(draft: Sequence[int], target: Sequence[int]) -> Verification:
    """Compares a draft with the target's tokens at its positions and at the next one.

    `target[j]` is the target's token after the committed tokens and `draft[:j]`, so `target` has
    one token more than `draft`. The first mismatch ends the accepted part, since every later target
    token was computed on a prefix that is not the answer. Raises `ValueError` for other lengths.
    """
    if len(target) != len(draft) + 1:
        raise ValueError(f"{len(target)} target tokens for a draft of {len(draft)}")
    accepted = common_prefix(draft, target)
    return Verification(accepted, [int(token) for token in target[: accepted + 1]])


_LAST_TOKENS = 32
"""Length of the ends that are compared first: two versions of an answer mostly differ there."""


def common_prefix(one: Sequence[int], other: Sequence[int]) -> int:
    """Length of the longest common prefix of two token sequences."""
    a, b = _listed(one), _listed(other)
    end = min(len(a), len(b))
    same = max(0, end - _LAST_TOKENS)
    if a[:same] != b[:same]:  # compared in C, and in halves
        same, end = 0, same
    elif a[same:end] == b[same:end]:
        return end
    while end - same > 1:  # they differ in [same, end)
        middle = (same + end) // 2
        if a[same:middle] == b[same:middle]:
            same = middle
        else:
            end = middle
    return same


def _listed(tokens: Sequence[int]) -> list[int]:
    return tokens if isinstance(tokens, list) else list(tokens)


def agreeing(guesses: Sequence[int], tokens: Sequence[int]) -> int:
    """Number of positions, among those in both, at which a guess equals the token."""
    return sum(a == b for a, b in zip(guesses, tokens, strict=False))
