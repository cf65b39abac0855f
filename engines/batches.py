"""Cutting a batch of rows into calls: which neighbouring slots run together, and how wide.

A call runs the slots `[first, first + count)` of one pool over `width` tokens. Rows shorter than
the call are padded on the right, and slots in between that are not in the batch are given pads at
their end: both write garbage past a slot's length, which the next write covers. Pure; no arrays.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from engines.base import Row
from engines.cache.pools import Pool
from engines.cache.slots import SlotCache

SHORT = 16
"""Tokens; rows up to this (verifying, decoding) may share a call whatever their lengths."""
GAP = 2
"""Idle slots worth carrying along: one costs about a third of the weights' fixed cost of a call."""


def width_class(tokens: int) -> int:
    """Rows of one class may share a call, padded to at most this width."""
    width = SHORT
    while width < tokens:
        width *= 2
    return width


@dataclass(frozen=True)
class Call:
    pool: Pool
    first: int
    members: tuple[int | None, ...]
    """For each slot of the call, the row's number in the batch; None for a slot carried along."""
    width: int

    @property
    def count(self) -> int:
        return len(self.members)


def plan(rows: Sequence[Row], cache: SlotCache, min_tokens: int) -> list[Call]:
    """Reserves room for every row and returns the calls that run them all."""
    for row in rows:
        cache.reserve(row.slot, row.start + max(min_tokens, len(row.tokens)))
    groups: dict[tuple[int, int], list[tuple[int, int]]] = {}
    for number, row in enumerate(rows):
        pool, index = cache.place(row.slot)
        width = width_class(len(row.tokens))
        if row.start + width > pool.capacity:  # no room for the pads of a longer row
            width = max(min_tokens, len(row.tokens))
        groups.setdefault((pool.capacity, width), []).append((index, number))
    calls = []
    for (_, width), members in sorted(groups.items()):
        pool, _ = cache.place(rows[members[0][1]].slot)
        gap = GAP if width == SHORT else 0
        for run in _runs(sorted(members), pool, cache, width, gap):
            first, last = run[0][0], run[-1][0]
            numbers: list[int | None] = [None] * (last - first + 1)
            for index, number in run:
                numbers[index - first] = number
            longest = max(len(rows[number].tokens) for _, number in run)
            calls.append(Call(pool, first, tuple(numbers), max(min_tokens, longest)))
    return calls


def _runs(
    members: list[tuple[int, int]], pool: Pool, cache: SlotCache, width: int, gap: int
) -> list[list[tuple[int, int]]]:
    """Splits (index, row number) pairs where too many idle slots, or one without room, lie."""
    runs = [[members[0]]]
    for before, here in pairwise(members):
        idle = [pool.occupants[index] for index in range(before[0] + 1, here[0])]
        room = all(cache.length[slot] + width <= pool.capacity for slot in idle)
        if len(idle) <= gap and room:
            runs[-1].append(here)
        else:
            runs.append([here])
    return runs
