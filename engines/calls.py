"""Calls: the pieces of a batch that a model runs at once.

A call runs the slots `[first, first + count)` of one pool over `width` tokens. Rows shorter than
`width` are padded on the right. Slots in between without a row in the batch get pads after their
cached positions. Both write garbage past a slot's length, which the next write covers. Pure code,
without arrays.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from engines.base import Row
from engines.cache.pools import Pool
from engines.cache.slots import SlotCache

SHORT_ROW_TOKENS = 16
"""Rows up to this length (verifying, decoding) may share a call whatever their lengths."""
MAX_IDLE_SLOTS = 2
"""Idle slots that a call of short rows may carry between two rows. An idle slot costs about a third
of a call's fixed cost (reading the weights)."""


def width_class(tokens: int) -> int:
    """Returns the width that a row's call is padded to at most; rows of one class may share one."""
    width = SHORT_ROW_TOKENS
    while width < tokens:
        width *= 2
    return width


@dataclass(frozen=True)
class Call:
    pool: Pool
    first: int
    members: tuple[int | None, ...]
    """Index in the batch of the row of each slot; None for an idle slot."""
    width: int

    @property
    def count(self) -> int:
        return len(self.members)


def plan_calls(rows: Sequence[Row], cache: SlotCache, min_tokens: int) -> list[Call]:
    """Reserves capacity for every row and returns the calls that run all rows."""
    for row in rows:
        cache.reserve(row.slot, row.start + max(min_tokens, len(row.tokens)))
    if len(rows) == 1:
        pool, index = cache.location(rows[0].slot)
        return [Call(pool, index, (0,), max(min_tokens, len(rows[0].tokens)))]
    groups: dict[tuple[int, int], list[tuple[int, int]]] = {}
    for number, row in enumerate(rows):
        pool, index = cache.location(row.slot)
        width = width_class(len(row.tokens))
        if row.start + width > pool.capacity:  # pads of a longer row would not fit
            width = max(min_tokens, len(row.tokens))
        groups.setdefault((pool.capacity, width), []).append((index, number))
    calls = []
    for (_, width), members in sorted(groups.items()):
        pool, _ = cache.location(rows[members[0][1]].slot)
        max_idle = MAX_IDLE_SLOTS if width == SHORT_ROW_TOKENS else 0
        for run in _runs(sorted(members), pool, cache, width, max_idle):
            first, last = run[0][0], run[-1][0]
            numbers: list[int | None] = [None] * (last - first + 1)
            for index, number in run:
                numbers[index - first] = number
            longest = max(len(rows[number].tokens) for _, number in run)
            calls.append(Call(pool, first, tuple(numbers), max(min_tokens, longest)))
    return calls


def _runs(
    members: list[tuple[int, int]], pool: Pool, cache: SlotCache, width: int, max_idle: int
) -> list[list[tuple[int, int]]]:
    """Splits sorted (index, row number) pairs into runs of neighbours.

    A run ends before more than `max_idle` idle slots, and before an idle slot that cannot hold
    `width` more positions.
    """
    runs = [[members[0]]]
    for before, here in pairwise(members):
        idle = [pool.occupants[index] for index in range(before[0] + 1, here[0])]
        fits = all(cache.length[slot] + width <= pool.capacity for slot in idle)
        if len(idle) <= max_idle and fits:
            runs[-1].append(here)
        else:
            runs.append([here])
    return runs
