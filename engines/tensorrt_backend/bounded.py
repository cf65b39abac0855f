"""An engine whose calls are limited in rows and tokens, as those of TensorRT engines are.

A call of too many rows becomes several calls. A row of too many tokens becomes several rows that
run one after the other; their choices are joined, so the caller sees one row.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

import numpy as np

from engines.base import HEAD_OUTPUTS, Choices, Row, SegmentDone, check_rows
from engines.calls import Call, plan_calls
from engines.staged import Runner, Sizes, StagedEngine

MostRows = Callable[[int], int]
"""Returns the largest number of rows of a call (at least 1), given the tokens of each row."""
Earlier = list[dict[int, list[Choices]]]
"""Choices of the earlier passes by layer, for each row."""


class BoundedEngine(StagedEngine):
    """A `StagedEngine` that keeps within the limits of its runner."""

    def __init__(self, runner: Runner, sizes: Sizes, most_tokens: int, most_rows: MostRows) -> None:
        """`most_tokens` is the limit for one row, at least `sizes.min_tokens`."""
        super().__init__(runner, sizes)
        self._most_tokens = most_tokens
        self._most_rows = most_rows

    def run(self, rows: Sequence[Row]) -> Iterator[SegmentDone]:
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
            yield step._replace(choices=_merged(step, earlier))

    def _pass(self, rows: Sequence[Row]) -> Iterator[SegmentDone]:
        planned = plan_calls(rows, self._cache, self.min_tokens)
        calls = [part for call in planned for part in self._cut(call)]
        with self._cache.pinned():
            yield from self._run(rows, calls)

    def _cut(self, call: Call) -> Iterator[Call]:
        """Cuts a call into calls within the limit, without idle slots at their ends."""
        most = self._most_rows(call.width)
        for first in range(0, call.count, most):
            members = call.members[first : first + most]
            busy = [place for place, number in enumerate(members) if number is not None]
            if busy:
                begin = call.first + first + busy[0]
                yield replace(call, first=begin, members=members[busy[0] : busy[-1] + 1])


def _first(row: Row, most: int) -> Row:
    """Returns the first `most` tokens of a row, with the choices that it asks for there."""
    later = _rest(row, most).choice_count
    return row._replace(tokens=row.tokens[:most], choice_count=row.choice_count - later)


def _rest(row: Row, most: int) -> Row:
    """Returns a row without its first `most` tokens; unchanged if it has no more than that."""
    if len(row.tokens) <= most:
        return row
    tokens = row.tokens[most:]
    return Row(row.slot, row.start + most, tokens, min(row.choice_count, len(tokens)), row.hints)


def _merged(step: SegmentDone, earlier: Earlier) -> list[Choices | None]:
    """Returns the choices of the last pass, joined with those of the earlier passes."""
    return [
        now and (_joined([*before[step.layer], now]) if step.layer in before else now)
        for now, before in zip(step.choices, earlier, strict=True)
    ]


def _joined(parts: Sequence[Choices]) -> Choices:
    joined = (np.concatenate([getattr(part, name) for part in parts]) for name in HEAD_OUTPUTS)
    return Choices(*joined)
