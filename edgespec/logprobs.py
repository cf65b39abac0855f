"""Log-probabilities of committed tokens, for requests that ask for them.

They are the log-softmax of the target's raw logits: before biases, penalties, temperature and what
top-k, top-p and min-p remove (as vLLM's default does). So they say how likely the target finds a
token, whatever the parameters of sampling are.

On the wire each token has `1 + count` records of 8 bytes, little-endian: a token id (uint32) and
its log-probability (float32). The first is the token's own; the others are the likeliest tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from edgespec.sampling import Logits

MAX_TOP_LOGPROBS = 20
"""Largest number of likeliest tokens that a request may ask for."""
_RECORD = np.dtype([("id", "<u4"), ("logprob", "<f4")])


class TokenLogprobs(NamedTuple):
    """What the target's probabilities were where it wrote a token."""

    logprob: float
    """Natural logarithm of the token's probability."""
    top: tuple[tuple[int, float], ...] = ()
    """The likeliest tokens and their log-probabilities, likeliest first."""


def record_bytes(count: int) -> int:
    """Bytes of a token's records, with `count` likeliest tokens."""
    return (1 + count) * _RECORD.itemsize


def measure(
    logits: Logits, top_ids: npt.NDArray[np.int64], tokens: Sequence[int], count: int
) -> bytes:
    """The records of `tokens`, the first of which has the logits `logits[0]`.

    `logits` is [N, vocabulary] and `top_ids` [N, top], likeliest first, for at least as many N as
    there are tokens. A vocabulary below `count` is filled up with minus infinity.
    """
    records = np.zeros((len(tokens), 1 + count), _RECORD)
    records["logprob"] = -np.inf
    for place, token in enumerate(tokens):
        raw = logits[place].astype(np.float64)
        largest = raw.max()
        total = largest + np.log(np.exp(raw - largest).sum())
        ids = np.concatenate([[token], top_ids[place][:count]])
        records["id"][place, : ids.size] = ids
        records["logprob"][place, : ids.size] = raw[ids] - total
    return records.tobytes()


def read(records: bytes, tokens: int) -> list[TokenLogprobs | None]:
    """The log-probabilities of that many tokens; None for each if the records do not fit them."""
    size = len(records) // tokens if tokens else 0
    if not size or size * tokens != len(records) or size % _RECORD.itemsize:
        return [None] * tokens
    rows = np.frombuffer(records, _RECORD).reshape(tokens, -1)
    return [
        TokenLogprobs(float(row["logprob"][0]), tuple((int(i), float(p)) for i, p in row[1:]))
        for row in rows
    ]
