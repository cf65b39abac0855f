"""Adjustments: changes of the logits that depend on the tokens before a position.

Biases and penalties are pure functions of the parameters and of the prefix, which is the prompt,
the answer so far and, along a draft, the drafted tokens. So the target's token at a position still
depends on (prefix, parameters, seed, position) alone. Whatever chooses a token passes the logits
through `Adjustments.apply` first: the target's choice and the hints in the cloud, both sides'
drafts on all their branches, the target alone (`engines.alone`), and the gap that `verify` shows.
`edgespec.sampling` has the order of all steps.

A session that asks for nothing has no adjustments: `adjustments_of` returns None, and its logits
are neither copied nor read.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
import numpy.typing as npt

from edgespec.sampling import Logits, common_prefix
from edgespec.sampling_parameters import Bias, Sampling


class Adjustment(Protocol):
    """One kind of adjustment, along one answer.

    It holds the state after the answer's tokens that it was given, drafted ones included. A draft
    may hold any token, also one that this adjustment rules out: the target never chooses it, so
    that what `apply` does after it changes no answer, but it must not fail.
    """

    def advance(self, tokens: Sequence[int]) -> None:
        """Takes the next tokens of the answer."""

    def retreat(self, tokens: Sequence[int]) -> None:
        """Takes back the last tokens of the answer, which are `tokens`."""

    def apply(self, logits: Logits) -> None:
        """Changes the logits of the next position in place.

        `logits` is [vocabulary], float32 or float64, finite or minus infinity. A draft's vocabulary
        may be smaller than the target's.
        """


class Adjustments:
    """All adjustments of one session. The result of `apply` depends on its arguments alone.

    The state of the last prefix is kept, so that the next one costs the tokens that differ.
    """

    def __init__(self, parts: Sequence[Adjustment], prompt_length: int) -> None:
        """`parts` are applied in order; they know the prompt, and are given the answer's tokens."""
        self._parts = parts
        self._prompt_length = prompt_length
        self._answer: list[int] = []
        """The answer's tokens that the parts have taken."""

    def apply(self, logits: Logits, prefix: Sequence[int]) -> Logits:
        """The adjusted logits of the position after `prefix`, as a new array [vocabulary].

        `logits` is [vocabulary], any float type; `prefix` holds the prompt and the tokens after it.
        """
        self.follow(prefix)
        changed: Logits = logits.astype(np.result_type(logits.dtype, np.float32))
        for part in self._parts:
            part.apply(changed)
        return changed

    def follow(self, prefix: Sequence[int]) -> None:
        """Brings the parts to the state after `prefix`."""
        answer = list(prefix[self._prompt_length :])
        same = common_prefix(self._answer, answer)
        wrong, fresh = self._answer[same:], answer[same:]
        self._answer = answer
        for part in self._parts:
            if wrong:
                part.retreat(wrong)
            if fresh:
                part.advance(fresh)


class _Biases:
    """`Sampling.logit_bias`."""

    def __init__(self, biases: Sequence[Bias]) -> None:
        self._ids = np.array([token for token, _ in biases], np.int64)
        self._values = np.array([value for _, value in biases], np.float64)

    def advance(self, tokens: Sequence[int]) -> None:
        """The biases are the same everywhere."""

    def retreat(self, tokens: Sequence[int]) -> None:
        """The biases are the same everywhere."""

    def apply(self, logits: Logits) -> None:
        known = self._ids < logits.shape[0]
        logits[self._ids[known]] += self._values[known]


class _Penalties:
    """The repetition, frequency and presence penalty of the tokens of a text.

    One place of the arrays belongs to each token that was ever in the prompt or the answer.
    """

    def __init__(self, sampling: Sampling, prompt: Sequence[int]) -> None:
        self._sampling = sampling
        repeated = sampling.repetition_penalty != 1.0
        self._ids = np.unique(np.asarray(prompt, np.int64)) if repeated else np.empty(0, np.int64)
        self._counts = np.zeros(self._ids.size)
        """How often each token stands in the answer."""
        self._prompt_tokens = self._ids.size
        """Places of the prompt's tokens, which come first."""
        self._used = self._ids.size
        """Places that have a token."""
        self._places = {token: place for place, token in enumerate(self._ids.tolist())}

    def advance(self, tokens: Sequence[int]) -> None:
        for token in tokens:
            place = self._place(token)  # may replace the arrays
            self._counts[place] += 1

    def retreat(self, tokens: Sequence[int]) -> None:
        for token in tokens:
            self._counts[self._places[token]] -= 1

    def _place(self, token: int) -> int:
        place = self._places.setdefault(token, self._used)
        if place == self._used:
            self._used += 1
            if place == self._ids.size:
                spare: npt.NDArray[np.int64] = np.zeros(max(64, place), np.int64)
                self._ids = np.concatenate([self._ids, spare])
                self._counts = np.concatenate([self._counts, np.zeros(spare.size)])
            self._ids[place] = token
        return place

    def apply(self, logits: Logits) -> None:
        ids, counts = self._ids[: self._used], self._counts[: self._used]
        seen = counts > 0
        penalised = seen.copy()
        penalised[: self._prompt_tokens] = True
        chosen = np.flatnonzero(penalised & (ids < logits.shape[0]))
        ids = ids[chosen]
        values = logits[ids].astype(np.float64)
        repetition = self._sampling.repetition_penalty
        if repetition != 1.0:
            values = np.where(values > 0, values / repetition, values * repetition)
        values -= self._sampling.frequency_penalty * counts[chosen]
        values -= self._sampling.presence_penalty * seen[chosen]
        logits[ids] = values


def adjustments_of(
    sampling: Sampling, prompt: Sequence[int], masks: Sequence[Adjustment] = ()
) -> Adjustments | None:
    """The adjustments of a session with this prompt; None if it asks for none.

    `masks` rule tokens out by minus infinity, and are applied first.
    """
    parts = [*masks]
    if sampling.logit_bias:
        parts.append(_Biases(sampling.logit_bias))
    if (
        sampling.repetition_penalty != 1.0
        or sampling.frequency_penalty != 0.0
        or sampling.presence_penalty != 0.0
    ):
        parts.append(_Penalties(sampling, prompt))
    return Adjustments(parts, len(prompt)) if parts else None


def adjusted(logits: Logits, adjustments: Adjustments | None, prefix: Sequence[int]) -> Logits:
    """The logits after `prefix`, adjusted; the same array without adjustments."""
    return logits if adjustments is None else adjustments.apply(logits, prefix)
