"""What agreement is worth: the rounds of lockstep drafting, worked out from where tokens match.

A draft that has been right so far stands on the target's own text, and the first one that is wrong
ends the round. So what it says while it is led along the target's answer (teacher forcing) is what
it would say in every round, and the rounds of any draft length follow from one such pass. What can
differ are the last bits: a device runs the draft one token at a time, which takes another path
through ONNX Runtime's attention (4e-7).
"""

from __future__ import annotations

from collections.abc import Sequence

from edgespec.sampling import Sampling, common_prefix
from engines.drafters.base import draft_tokens
from engines.drafters.ngram import NgramDrafter

LENGTHS = range(1, 9)
"""Draft lengths that are reported."""


def accepted(matches: Sequence[bool], length: int) -> list[int]:
    """Accepted tokens of each round of one answer, with drafts of `length` tokens.

    `matches[i]` says whether the draft names token i of the answer. A round commits what it accepts
    and the target's next token, except where the answer ends first.
    """
    rounds = []
    position = 0
    while position < len(matches):
        ahead = matches[position : position + length]
        right = next((i for i, match in enumerate(ahead) if not match), len(ahead))
        rounds.append(right)
        position += right + 1
    return rounds


def expected_speed(
    rounds: Sequence[Sequence[int]], draft_ms: float, verify_ms: Sequence[float]
) -> tuple[float, int]:
    """Tokens a second under streaming, and the draft length at which they are most.

    `rounds[k]` holds the accepted tokens of each round with drafts of `LENGTHS[k]` tokens,
    `verify_ms[n]` what the target needs for n + 1 tokens. The device drafts on its own core while
    the cloud verifies. Where all of a draft is accepted, the next one is there already, or as much
    of it as drafting took longer than verifying is waited for. Where not, it is drafted only then.
    No distance, no hints and no branches: what those bring comes on top.
    """
    best = (0.0, LENGTHS[0])
    for length, accepted_tokens in zip(LENGTHS, rounds, strict=True):
        if not accepted_tokens:
            continue
        drafting, verifying = length * draft_ms, verify_ms[length]
        whole = sum(n == length for n in accepted_tokens) / len(accepted_tokens)
        waiting = whole * max(0.0, drafting - verifying) + (1 - whole) * drafting
        tokens = 1 + sum(accepted_tokens) / len(accepted_tokens)
        best = max(best, (1000 * tokens / (verifying + waiting), length))
    return best


def ngram_matches(prompt: Sequence[int], answer: Sequence[int]) -> list[bool]:
    """Whether prompt lookup names each token of the answer; False also where it names none."""
    drafter, text = NgramDrafter(), [*prompt, *answer]
    return [
        draft_tokens(drafter, text[:position], 1, Sampling()) == [text[position]]
        for position in range(len(prompt), len(text))
    ]


def ngram_accepted(prompt: Sequence[int], answer: Sequence[int], length: int) -> list[int]:
    """`accepted` for prompt lookup, which looks up again after each of its own guesses."""
    drafter, text, rounds = NgramDrafter(), [*prompt, *answer], []
    position = len(prompt)
    while position < len(text):
        drafted = draft_tokens(drafter, text[:position], length, Sampling())
        rounds.append(common_prefix(drafted, text[position:]))
        position += rounds[-1] + 1
    return rounds
