"""The parameters of sampling, apart from the rule: importing them does not import numpy."""

from __future__ import annotations

import operator
import reprlib
from collections.abc import Mapping
from typing import Annotated

import msgspec

from edgespec.errors import UsageError

MAX_BIASES = 300
"""Tokens that may have a bias; more do not fit a device's header."""

Bias = tuple[int, float]
"""A token id and what is added to its logit."""


class Sampling(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """How tokens are chosen. Temperature 0 is greedy: it ignores the seed, top-p, top-k and min-p,
    but not the biases and penalties."""

    temperature: float = 0.0
    top_p: float = 1.0
    """Keep the likeliest tokens whose probabilities together reach this sum; in (0, 1]."""
    top_k: int = 0
    """Keep the `top_k` likeliest tokens; 0 keeps all."""
    seed: int = 0
    """Key of the noise; 0 <= seed < 2**63."""
    min_p: float = 0.0
    """Keep tokens that are at least this fraction as probable as the likeliest; in [0, 1]."""
    presence_penalty: float = 0.0
    """Subtracted once from the logits of tokens that are in the answer; in [-2, 2]."""
    frequency_penalty: float = 0.0
    """Subtracted from the logits of tokens in the answer, once for each time; in [-2, 2]."""
    repetition_penalty: float = 1.0
    """Divides positive logits of tokens in prompt or answer, and multiplies negative ones."""
    logit_bias: Annotated[tuple[Bias, ...], msgspec.Meta(max_length=MAX_BIASES)] = ()
    """Added to the logits of the named tokens, -100 to 100 each."""

    @property
    def greedy(self) -> bool:
        return self.temperature == 0.0

    def check(self) -> None:
        """Raises `UsageError` naming the first parameter out of range."""
        if self.temperature != 0.0 and not 0.01 <= self.temperature <= 100.0:
            raise UsageError(
                f"temperature is {self.temperature}; it must be 0 (greedy) or from 0.01 to 100"
            )
        if not 0.0 < self.top_p <= 1.0:
            raise UsageError(f"top-p is {self.top_p}; it must lie above 0 and at most at 1")
        if not 0 <= self.top_k < 2**31:
            raise UsageError(
                f"top-k is {self.top_k}; it must be 0 (all tokens) or more, and below 2**31"
            )
        if not 0 <= self.seed < 2**63:
            raise UsageError(f"seed is {self.seed}; it must lie between 0 and 2**63 - 1")
        _check_range("min-p", self.min_p, 0.0, 1.0)
        _check_range("presence penalty", self.presence_penalty, -2.0, 2.0)
        _check_range("frequency penalty", self.frequency_penalty, -2.0, 2.0)
        _check_range("repetition penalty", self.repetition_penalty, 0.01, 100.0)
        _check_biases(self.logit_bias)


def biases(given: Mapping[int, float]) -> tuple[Bias, ...]:
    """`Sampling.logit_bias` for numbers by token id. Raises `UsageError` for anything else."""
    try:
        _check_number(len(given))  # before anything is sorted
        return tuple(sorted((operator.index(token), float(given[token])) for token in given))
    except (TypeError, ValueError, LookupError) as error:
        raise UsageError(
            f"logit bias is {reprlib.repr(given)}; pass numbers by token id, as {{42: -1.5}}"
        ) from error


def _check_range(name: str, value: float, least: float, most: float) -> None:
    if not least <= value <= most:  # a NaN is in no range
        raise UsageError(f"{name} is {value}; it must be from {least:g} to {most:g}")


def _check_number(tokens: int) -> None:
    if tokens > MAX_BIASES:
        raise UsageError(f"logit bias names {tokens} tokens; at most {MAX_BIASES} may have one")


def _check_biases(biases: tuple[Bias, ...]) -> None:
    _check_number(len(biases))
    ids = [token for token, _ in biases]
    if len(set(ids)) < len(ids):
        raise UsageError("logit bias names a token twice")
    for token, bias in biases:
        if not 0 <= token < 2**31:
            raise UsageError(f"logit bias names the token id {token}; there is none")
        _check_range(f"logit bias of token {token}", bias, -100.0, 100.0)
