"""An engine whose calls may not be as large as one likes, as TensorRT's and those of fixed shapes.

A batch of too many rows becomes several calls. A row of too many tokens becomes several, one after
the other; what it asked for is put together again, so nobody who calls notices.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

import numpy as np

from engines.base import HEAD_OUTPUTS, Choices, Row, Step, check_rows
from engines.batches import Call, plan
from engines.staged import Runner, Sizes, StagedEngine

MostRows = Callable[[int], int]
"""Rows that a call may have, at least one, by the tokens of each."""
Earlier = list[dict[int, list[Choices]]]
"""By row and layer, what the passes before the last have said."""


class BoundedEngine(StagedEngine):
    def __init__(self, runner: Runner, sizes: Sizes, most_tokens: int, most_rows: MostRows) -> None:
        """`most_tokens`: of one row, at least `sizes.min_tokens`."""
        super().__init__(runner, sizes)
        self._most_tokens = most_tokens
        self._most_rows = most_rows

    def run(self, rows: Sequence[Row]) -> Iterator[Step]:
        check_rows(self, rows)
        earlier: Earlier = [{} for _ in rows]
        while any(len(row.tokens) > self._most_tokens for row in rows):
            long = [n for n, row in enumerate(rows) if len(row.tokens) > self._most_tokens]
            heads = [_first(rows[n], self._most_tokens) for n in long]
            for step in self._pass(heads):
                for n, choices in zip(long, step.choices, strict=True):
                    if choices is not None:
                        earlier[n].setdefault(step.layer, []).append(choices)
            rows = [_rest(row, self._most_tokens) for row in rows]
        for step in self._pass(rows):
            yield replace(step, choices=_merged(step, earlier))

    def _pass(self, rows: Sequence[Row]) -> Iterator[Step]:
        calls = [
            part for call in plan(rows, self._cache, self.min_tokens) for part in self._cut(call)
        ]
        with self._cache.still():
            yield from self._run(rows, calls)

    def _cut(self, call: Call) -> Iterator[Call]:
        """Calls of as many rows as may be; idle slots at their ends are left out."""
        most = self._most_rows(call.width)
        for first in range(0, call.count, most):
            members = call.members[first : first + most]
            busy = [place for place, number in enumerate(members) if number is not None]
            if busy:
                begin = call.first + first + busy[0]
                yield replace(call, first=begin, members=members[busy[0] : busy[-1] + 1])


def _first(row: Row, most: int) -> Row:
    """The beginning of a row, with the choices that it wants of it."""
    tokens = row.tokens[:most]
    return row._replace(tokens=tokens, wanted=row.wanted - _rest(row, most).wanted)


def _rest(row: Row, most: int) -> Row:
    if len(row.tokens) <= most:
        return row
    tokens = row.tokens[most:]
    return Row(row.slot, row.start + most, tokens, min(row.wanted, len(tokens)), row.hints)


def _merged(step: Step, earlier: Earlier) -> list[Choices | None]:
    """The choices of a step, after those of the passes before."""
    return [
        now and (_joined([*before[step.layer], now]) if step.layer in before else now)
        for now, before in zip(step.choices, earlier, strict=True)
    ]


def _joined(parts: Sequence[Choices]) -> Choices:
    whole = (np.concatenate([getattr(part, name) for part in parts]) for name in HEAD_OUTPUTS)
    return Choices(*whole)
