"""Rounds of lockstep drafting, computed from the tokens at which draft and target agree.

A draft that has been right so far has drafted the target's own tokens, and its first wrong token
ends the round. Its predictions under teacher forcing are therefore those of every round, and one
pass gives the rounds of every draft length. Only the last bits can differ: a device runs the draft
one token at a time, which takes another path through ONNX Runtime's attention (4e-7).
"""

from __future__ import annotations

from collections.abc import Sequence

from edgespec.sampling import Sampling, common_prefix
from engines.drafters.base import draft_tokens
from engines.drafters.ngram import NgramDrafter

LENGTHS = range(1, 9)
"""Draft lengths that are reported, in tokens."""


def accepted(matches: Sequence[bool], length: int) -> list[int]:
    """Accepted tokens of each round of one answer, with drafts of `length` tokens.

    `matches[i]` is True if the draft predicts token i of the answer. A round commits the accepted
    tokens and the target's next token, unless the answer ends before it.
    """
    rounds = []
    position = 0
    while position < len(matches):
        ahead = matches[position : position + length]
        right = next((i for i, match in enumerate(ahead) if not match), len(ahead))
        rounds.append(right)
        position += right + 1
    return rounds


def mean_accepted(rounds: Sequence[int]) -> float:
    """Mean accepted tokens of a round; 0 for no rounds."""
    return sum(rounds) / max(len(rounds), 1)


def expected_speed(
    rounds: Sequence[Sequence[int]], draft_ms: float, verify_ms: Sequence[float]
) -> tuple[float, int]:
    """Highest tokens/s under streaming, and the draft length that reaches it.

    `rounds[k]` holds the accepted tokens of each round with drafts of `LENGTHS[k]` tokens, and
    `verify_ms[n]` the target's time for n + 1 tokens. The device drafts on a core of its own while
    the cloud verifies. If all tokens of a draft are accepted, the next draft exists already, and
    the target waits only for the time by which drafting exceeds verifying. Otherwise the next draft
    begins after the verdict. Network distance, hints and branches are left out.
    """
    best = (0.0, LENGTHS[0])
    for length, accepted_tokens in zip(LENGTHS, rounds, strict=True):
        if not accepted_tokens:
            continue
        drafting, verifying = length * draft_ms, verify_ms[length]
        all_accepted = sum(n == length for n in accepted_tokens) / len(accepted_tokens)
        waiting = all_accepted * max(0.0, drafting - verifying) + (1 - all_accepted) * drafting
        tokens = 1 + mean_accepted(accepted_tokens)
        best = max(best, (1000 * tokens / (verifying + waiting), length))
    return best


def ngram_matches(prompt: Sequence[int], answer: Sequence[int]) -> list[bool]:
    """True for each token of the answer that prompt lookup predicts."""
    drafter, text = NgramDrafter(), [*prompt, *answer]
    return [
        draft_tokens(drafter, text[:position], 1, Sampling()) == [text[position]]
        for position in range(len(prompt), len(text))
    ]


def ngram_accepted(prompt: Sequence[int], answer: Sequence[int], length: int) -> list[int]:
    """`accepted` for prompt lookup, which looks up again after each token that it drafts."""
    drafter, text, rounds = NgramDrafter(), [*prompt, *answer], []
    position = len(prompt)
    while position < len(text):
        drafted = draft_tokens(drafter, text[:position], length, Sampling())
        rounds.append(common_prefix(drafted, text[position:]))
        position += rounds[-1] + 1
    return rounds
