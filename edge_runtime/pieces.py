"""The pieces of an answer: what a reader receives, token by token."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

from edgespec.logprobs import TokenLogprobs

Origin = Literal["device", "cloud-draft", "target", "unverified", "restored"]
"""Source of a token: the device's draft, the cloud's draft, or the target itself; `unverified`: the
device's draft while the cloud is lost, not committed; `restored`: committed by an earlier
session."""


class Piece(NamedTuple):
    """One token of the answer."""

    token: int
    text: str
    """Text of the answer that became final with this token; empty inside a character."""
    origin: Origin
    at: float
    """Time at which the token was committed, by the loop's clock, in seconds."""
    correction: int | None = None
    """Characters of the answer that stand before this piece; the text after them, which was
    unverified, is withdrawn. None: nothing is withdrawn."""
    logprobs: TokenLogprobs | None = None
    """The target's log-probabilities, if the request asked for them; unverified and restored tokens
    have none."""


class News(NamedTuple):
    """Tokens that a verdict adds to the committed ones."""

    tokens: Sequence[int] = ()
    accepted: int = 0
    """Number of `tokens`, from the first on, that the device drafted."""
    confirmed: int = 0
    """Number of `tokens`, from the first on, that the device or the cloud drafted."""
    logprobs: Sequence[TokenLogprobs | None] = ()
    """Log-probabilities of each token; empty if they were not asked for."""

    def origin(self, place: int) -> Origin:
        if place < self.accepted:
            return "device"
        return "cloud-draft" if place < self.confirmed else "target"
