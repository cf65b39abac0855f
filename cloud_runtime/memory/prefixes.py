"""Search for token sequences with a common prefix, without comparing all of them.

The sequences are sorted. The further one stands from the place where another would be inserted, the
shorter their common prefix. The search starts at that place and may stop at any time.
"""

from __future__ import annotations

from array import array
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from typing import Generic, TypeVar

import numpy as np

TOKEN_BYTES = 4

Owner = TypeVar("Owner")


def packed(tokens: Sequence[int]) -> bytes:
    """Return tokens as bytes, which compare faster."""
    return array("I", tokens).tobytes()


def count(tokens: bytes) -> int:
    """Return the number of packed tokens."""
    return len(tokens) // TOKEN_BYTES


def shared(one: bytes, other: bytes) -> int:
    """Return the length, in tokens, of the common prefix of two packed sequences."""
    size = min(count(one), count(other))
    differ = np.frombuffer(one, "u4", size) != np.frombuffer(other, "u4", size)
    place = int(differ.argmax()) if size else 0
    return place if size and differ[place] else size


class Prefixes(Generic[Owner]):
    """Packed token sequences, each with its owner. Two owners may have the same sequence."""

    def __init__(self, least_tokens: int) -> None:
        """`least_tokens`: length of the shortest common prefix that is found."""
        self._least_tokens = least_tokens
        self._sequences: list[bytes] = []
        self._owners: list[Owner] = []

    def __len__(self) -> int:
        return len(self._sequences)

    def add(self, tokens: bytes, owner: Owner) -> None:
        place = bisect_left(self._sequences, tokens)
        self._sequences.insert(place, tokens)
        self._owners.insert(place, owner)

    def remove(self, tokens: bytes, owner: Owner) -> None:
        place = bisect_left(self._sequences, tokens)
        while self._owners[place] is not owner:
            place += 1
        del self._sequences[place], self._owners[place]

    def like(self, tokens: bytes) -> Iterator[tuple[int, Owner]]:
        """Yield the length of each common prefix and its owner, the longest first."""
        right = bisect_left(self._sequences, tokens)
        left = right - 1
        before, behind = self._shared(tokens, left), self._shared(tokens, right)
        while max(before, behind) >= self._least_tokens:
            if before > behind:
                yield before, self._owners[left]
                left -= 1
                before = self._shared(tokens, left)
            else:
                yield behind, self._owners[right]
                right += 1
                behind = self._shared(tokens, right)

    def _shared(self, tokens: bytes, place: int) -> int:
        inside = 0 <= place < len(self._sequences)
        return shared(tokens, self._sequences[place]) if inside else 0
