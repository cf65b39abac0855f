"""The first difference between an answer and the target's own, and its explanation."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

from edgespec.adjustments import adjusted, adjustments_of
from edgespec.manifest import Precision
from edgespec.sampling import Sampling, common_prefix, gap
from edgespec.text import Codec
from engines.base import Engine, Row, final_choices

ROUNDING_LOGITS: Mapping[Precision, float] = MappingProxyType(
    {"fp32": 0.01, "fp16": 0.25, "int8": 1.0, "int4": 1.0}
)
"""Gap of two candidates up to which another machine's rounding may decide between them. Measured on
SmolLM2-135M: 2e-4 for fp32 in two runtimes, almost 1 for int8 activations; fp16 includes bf16,
whose step is 0.125 at a logit of 20."""


@dataclass(frozen=True)
class Candidate:
    """One of the two tokens at the position of a difference."""

    token: int | None
    """Token id; None: the answer has ended here."""
    text: str = ""


@dataclass(frozen=True)
class Difference:
    """The first position at which an answer differs from the target's own."""

    position: int
    """Index of the token in the answer, from 0."""
    expected: Candidate
    """The token of the target alone."""
    found: Candidate
    gap_logits: float | None = None
    """Score of the expected token minus that of the other, by the target on this machine; infinite
    if min-p, top-k or top-p removes one of them. None: not computed."""

    precision: Precision = "fp32"
    """Precision of the target's layers."""

    @property
    def near_tie(self) -> bool:
        """True if another machine's rounding explains the difference."""
        gap = self.gap_logits
        return gap is not None and abs(gap) <= ROUNDING_LOGITS[self.precision]

    def explain(self) -> str:
        """Returns what the gap says about the cause, in words."""
        gap = self.gap_logits
        if gap is None:
            return "the cause is unknown"
        if math.isinf(gap):
            return "unclear: min-p, top-p or top-k keeps only one of the two tokens on this machine"
        kind, explains = ("near tie", "explains") if self.near_tie else ("fault", "cannot explain")
        return f"{kind}: {abs(gap):.2g} logits apart, which rounding in {self.precision} {explains}"


def first_difference(
    expected: Sequence[int], found: Sequence[int], codec: Codec
) -> Difference | None:
    """Returns the first difference of two answers, without its gap; None if they are identical."""
    position = common_prefix(expected, found)
    if position == len(expected) == len(found):
        return None
    return Difference(
        position, _candidate(expected, position, codec), _candidate(found, position, codec)
    )


def gap_of(
    difference: Difference, prompt: Sequence[int], answer: Sequence[int], sampling: Sampling,
    engine: Engine,
) -> float | None:  # fmt: skip
    """Returns the gap of the two candidates in logits, computed by the target `engine`.

    `answer` is the answer of the target alone. None if one of the answers has ended there.
    """
    one, other = difference.expected.token, difference.found.token
    if one is None or other is None:
        return None
    tokens = [*prompt, *answer[: difference.position]]
    slot = engine.open()
    try:
        (choices,) = final_choices(engine, [Row(slot, 0, tokens)])
    finally:
        engine.close(slot)
    assert choices is not None
    logits = adjusted(choices.logits[0], adjustments_of(sampling, prompt), tokens)
    return gap(logits, sampling, len(tokens), one, other)


def _candidate(answer: Sequence[int], position: int, codec: Codec) -> Candidate:
    if position == len(answer):
        return Candidate(None)
    token = answer[position]
    return Candidate(token, codec.decode([token]))
