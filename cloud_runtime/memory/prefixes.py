"""Of many texts, those that begin as another does, without looking at every one.

Texts lie sorted. The further one stands from where another would be put in, the less the two have
in common, so the search goes outwards from there and may stop at any time.
"""

from __future__ import annotations

from array import array
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from typing import Generic, TypeVar

import numpy as np

LEAST = 8
"""Tokens; what begins alike for fewer is not worth a copy."""
_WIDTH = 4
"""Bytes of a token."""

Owner = TypeVar("Owner")


def packed(tokens: Sequence[int]) -> bytes:
    """A text as bytes, which are compared faster."""
    return array("I", tokens).tobytes()


def count(text: bytes) -> int:
    """Tokens of a packed text."""
    return len(text) // _WIDTH


def shared(one: bytes, other: bytes) -> int:
    """How many tokens two packed texts begin with alike."""
    size = min(len(one), len(other)) // _WIDTH
    differ = np.frombuffer(one, "u4", size) != np.frombuffer(other, "u4", size)
    place = int(differ.argmax()) if size else 0
    return place if size and differ[place] else size


class Prefixes(Generic[Owner]):
    """Packed texts, each with its owner. Two owners may have the same text."""

    def __init__(self) -> None:
        self._texts: list[bytes] = []
        self._owners: list[Owner] = []

    def __len__(self) -> int:
        return len(self._texts)

    def add(self, text: bytes, owner: Owner) -> None:
        place = bisect_left(self._texts, text)
        self._texts.insert(place, text)
        self._owners.insert(place, owner)

    def remove(self, text: bytes, owner: Owner) -> None:
        place = bisect_left(self._texts, text)
        while self._owners[place] is not owner:
            place += 1
        del self._texts[place], self._owners[place]

    def like(self, text: bytes) -> Iterator[tuple[int, Owner]]:
        """Tokens in common and the owner, for all with at least `LEAST`, the most first."""
        right = bisect_left(self._texts, text)
        left = right - 1
        before, behind = self._shared(text, left), self._shared(text, right)
        while max(before, behind) >= LEAST:
            if before > behind:
                yield before, self._owners[left]
                left -= 1
                before = self._shared(text, left)
            else:
                yield behind, self._owners[right]
                right += 1
                behind = self._shared(text, right)

    def _shared(self, text: bytes, place: int) -> int:
        return shared(text, self._texts[place]) if 0 <= place < len(self._texts) else 0
