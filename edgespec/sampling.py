"""The one rule: what the target's token at a position is, and how a draft is verified against it.

The token at position `i` is a pure function of the logits there (hence of the prefix), the sampling
parameters, the seed and `i`:

    greedy     argmax(logits)
    sampling   argmax(log p + g),  p = top-k and top-p of softmax(logits / temperature),
               g_v = -log(-log u_v),  u = Philox4x64(key=seed, counter=i << 64)

The second line is the Gumbel-max trick (Gumbel 1954; Maddison et al. 2014): its result has exactly
the distribution p. Because the noise depends on nothing but (seed, i), a draft that picks its own
token with the same noise agrees with the target as often as their distributions let it, without a
message between them (coupling without communication, Daliri et al. 2408.07978), and any server that
is asked twice answers twice the same. Ties go to the lowest token id everywhere.

Nothing outside this module compares tokens or draws noise.
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
    """Noise of the tokens `ids` at `position`, of a vocabulary of `size`; float64, shape of `ids`.

    Token v's noise does not depend on which others are asked for, nor on `size` beyond v, so models
    whose embeddings are padded differently share it. The raw stream of numpy's Philox is stable by
    numpy's own guarantee, which its floating-point generators are not. One draw serves every exit
    head, the draft and the target that look at the same position.
    """
    bits = _uniform_bits(seed, position, size)[ids]
    uniform = ((bits >> np.uint64(11)).astype(np.float64) + 0.5) * 2.0**-53
    return -np.log(-np.log(uniform))


def keep(logits: Logits, sampling: Sampling) -> npt.NDArray[np.int64]:
    """Ids that top-k and top-p leave, ascending. Shape [kept]; `logits` is [vocabulary]."""
    size = logits.shape[0]
    ids = np.arange(size)
    if 0 < sampling.top_k < size:
        least = np.partition(logits, size - sampling.top_k)[size - sampling.top_k]
        above = np.flatnonzero(logits > least)
        ties = np.flatnonzero(logits == least)[: sampling.top_k - above.size]
        ids = np.sort(np.concatenate([above, ties]))
    if sampling.top_p < 1.0:
        mass = logits[ids].astype(np.float64)
        # In place: fresh arrays of a whole vocabulary cost more than the arithmetic on them.
        np.exp(
            np.divide(np.subtract(mass, mass.max(), out=mass), sampling.temperature, out=mass),
            out=mass,
        )
        total = mass.sum()
        # Whatever is lighter than this adds up to less than 1 - top_p: no need to sort it.
        heavy = np.flatnonzero(mass > (1.0 - sampling.top_p) * total / ids.size)
        order = heavy[np.argsort(-mass[heavy], kind="stable")]
        before = np.cumsum(mass[order]) - mass[order]
        ids = np.sort(ids[order[before < sampling.top_p * total]])
    return ids


def choose(logits: Logits, sampling: Sampling, position: int) -> int:
    """The token at `position`, given the logits there. `logits` is [vocabulary], any float type."""
    if sampling.greedy:
        return int(np.argmax(logits))
    if 0 < sampling.top_k < logits.shape[0] or sampling.top_p < 1.0:
        ids = keep(logits, sampling)
    else:
        ids = _contenders(logits, sampling, position)
    return int(ids[np.argmax(_perturbed(logits, ids, sampling, position))])


RUNNERS_UP = 3
"""That are named beside a choice."""


class Ranked(NamedTuple):
    """The rule's choice and its runners-up, weighed by their scores.

    A score is a logit, under sampling with its noise, `temperature * g`, added. What top-k and
    top-p leave out is weighed too, since another model's cut lies elsewhere.
    """

    token: int
    odds: float
    """Log-odds of the choice against all others by the softmax of scores; infinite without any."""
    runners_up: tuple[tuple[int, float], ...]
    """The best after the choice, and what each has of the others' weight; fewer than `RUNNERS_UP`
    where there are no more."""


def rank(
    logits: Logits, sampling: Sampling, position: int, top: npt.NDArray[np.int64] | None = None
) -> Ranked:
    """`choose`, with the runners-up among `top`, ids in any order (all without). `logits` is
    [vocabulary]. Ties go to the lowest id."""
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
    said = zip(ids[best].tolist(), shares.tolist(), strict=True)
    return Ranked(token, odds, tuple((other, share) for other, share in said if share > 0))


def _perturbed(
    logits: Logits, ids: npt.NDArray[np.int64], sampling: Sampling, position: int
) -> Logits:
    noise = gumbel_noise(sampling.seed, position, ids, logits.shape[0])
    return logits[ids].astype(np.float64) / sampling.temperature + noise


def _contenders(logits: Logits, sampling: Sampling, position: int) -> npt.NDArray[np.int64]:
    """Ids, ascending, that hold the winner for certain, found without a logarithm for every token.

    The likely ones are computed. Any other lies `margin` or more below the largest logit, so to
    win it needs noise above what is left, which is a bound on its raw bits.
    """
    margin = 4.0 * sampling.temperature
    largest = float(logits.max())
    # Compared in float64 whatever the logits are: rounding must not push the edge up.
    likely = np.flatnonzero(logits >= np.float64(largest - margin))
    best = float(_perturbed(logits, likely, sampling, position).max())
    needed = np.exp(-np.exp((largest - margin) / sampling.temperature - best))
    # Shortened by more than rounding can add, so that nobody is left out.
    least = np.uint64(max(0, int(needed * (1.0 - 1e-9) * 2.0**53) - 1) << 11)
    bits = _uniform_bits(sampling.seed, position, logits.shape[0])
    return np.union1d(likely, np.flatnonzero(bits >= least))


def guess(
    ids: npt.NDArray[np.int64], logits: Logits, sampling: Sampling, position: int, size: int
) -> int:
    """Like `choose`, from the top candidates of a head alone: for hints, which decide nothing."""
    if sampling.greedy:
        return int(ids[0])
    kept = keep(logits, sampling)
    noise = gumbel_noise(sampling.seed, position, ids[kept], size)
    return int(ids[kept[np.argmax(logits[kept].astype(np.float64) / sampling.temperature + noise)]])


class Verification(NamedTuple):
    accepted: int
    """Draft tokens that are the target's own."""
    tokens: list[int]
    """Tokens to commit: the accepted ones and the target's next, `accepted + 1` of them."""


def verify(draft: Sequence[int], target: Sequence[int]) -> Verification:
    """Compares a draft with the target's tokens at the same positions and the one after.

    `target[j]` is the target's token after the committed text and `draft[:j]`; it has one entry
    more than `draft`. The first mismatch ends the draft, since every later target token was
    computed on a prefix that is not the answer.
    """
    if len(target) != len(draft) + 1:
        raise ValueError(f"{len(target)} target tokens for a draft of {len(draft)}")
    accepted = common_prefix(draft, target)
    return Verification(accepted, [int(token) for token in target[: accepted + 1]])


_NEAR = 32
"""Texts of one answer, if they differ at all, mostly do so in their last tokens."""


def common_prefix(one: Sequence[int], other: Sequence[int]) -> int:
    """How many tokens two sequences begin with alike."""
    a, b = _listed(one), _listed(other)
    end = min(len(a), len(b))
    same = max(0, end - _NEAR)
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
    """Positions, of those that both have, where a hint names the token."""
    return sum(a == b for a, b in zip(guesses, tokens, strict=False))
