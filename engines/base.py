"""What a back end is: rows of (slot, start, tokens) in, next-token choices out.

A **slot** is a row of the KV cache. A **row** asks for `tokens` to be written into a slot from
position `start` on, and for the choices after its last `wanted` tokens. Rolling back is a row whose
`start` is lower than what is cached: what lies past it is garbage that the write covers. A **pass**
runs a batch of rows through the model's segments and yields after each, so that a caller can look
at its socket in between.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from typing import Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

TOP = 64
"""Candidates that a head returns besides the arg-max."""


class Row(NamedTuple):
    slot: int
    start: int
    tokens: Sequence[int]
    wanted: int = 1
    """Choices after the last `wanted` tokens; 0 for a prompt chunk that is not the last."""
    hints: bool = False
    """Whether exit heads are to run for this row."""


@dataclass(frozen=True)
class Choices:
    """What a head says after each wanted token of one row, in order. N is the row's `wanted`."""

    argmax: npt.NDArray[np.int64]
    """[N]"""
    top_ids: npt.NDArray[np.int64]
    """[N, TOP], likeliest first; narrower where the vocabulary is."""
    top_logits: npt.NDArray[Any]
    """[N, TOP]"""
    logits: npt.NDArray[Any]
    """[N, vocabulary]"""

    @property
    def finite(self) -> bool:
        """Whether there is anything to choose from: overflow makes all logits NaN or infinite."""
        return bool(np.isfinite(self.top_logits).all())


HEAD_OUTPUTS = tuple(field.name for field in fields(Choices))
"""What a head's graph calls them, in this order."""


@dataclass(frozen=True)
class Step:
    """One segment has run."""

    layer: int
    """Layers done."""
    final: bool
    choices: list[Choices | None]
    """In the order of the batch's rows; None where a row wants nothing of this head."""


class Engine(Protocol):
    """A loaded model with its KV cache. Not thread-safe: one loop owns it."""

    @property
    def vocabulary(self) -> int: ...

    @property
    def context(self) -> int:
        """Positions that a slot may hold."""

    @property
    def min_tokens(self) -> int:
        """Tokens that a row costs at least: shorter ones are padded."""

    @property
    def slots(self) -> int:
        """Slots that may be open at once."""

    def slot_bytes(self, positions: int) -> int:
        """Bytes of a slot that holds so many positions. Grows in steps, since capacities do."""

    def open(self) -> int:
        """A free slot, empty. Raises `EngineError` when all are taken."""

    def close(self, slot: int) -> None:
        """Gives the slot back."""

    def rest(self, slot: int) -> None:
        """The slot will run nothing for long: it makes way, so that those that run lie together.

        Costs a copy; so does the row or the copy into it that brings it back.
        """

    def truncate(self, slot: int, length: int) -> None:
        """Forgets everything from position `length` on. Costs nothing."""

    def copy(self, source: int, target: int, start: int, end: int) -> None:
        """Copies cached positions `[start, end)` of one slot into another, which then holds `end`.

        A branch of a text is begun so. `target` holds at least `start` positions and `source` at
        least `end`; anything else is a `ValueError`. Not while a batch runs.
        """

    def cached(self, slot: int) -> int:
        """Positions of the slot that hold keys and values."""

    def run(self, rows: Sequence[Row]) -> Iterator[Step]:
        """Runs one batch, at most one row a slot. The caller exhausts the iterator.

        A row starts at or below its slot's cached length and ends within `context`; anything else
        is a `ValueError` before anything has run.
        """


def final_choices(engine: Engine, rows: Sequence[Row]) -> list[Choices | None]:
    """Runs a batch for a caller without an interest in the steps between."""
    *_, last = engine.run(rows)
    return last.choices


def check_rows(engine: Engine, rows: Sequence[Row]) -> None:
    """Raises `ValueError` for a batch that breaks the contract of `Engine.run`."""
    if len({row.slot for row in rows}) != len(rows):
        raise ValueError("a slot stands twice in one batch")
    for row in rows:
        if not row.tokens or not 0 <= row.wanted <= len(row.tokens):
            raise ValueError(f"{len(row.tokens)} tokens with {row.wanted} choices wanted")
        if not 0 <= row.start <= engine.cached(row.slot):
            raise ValueError(f"row starts at {row.start}, cached are {engine.cached(row.slot)}")
        if row.start + len(row.tokens) > engine.context:
            raise ValueError(f"row ends at {row.start + len(row.tokens)} of {engine.context}")
        if not all(0 <= token < engine.vocabulary for token in row.tokens):
            raise ValueError(f"a token id outside the vocabulary of {engine.vocabulary}")
