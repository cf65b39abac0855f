"""The contract of a back end: rows of (slot, start, tokens) in, next-token choices out.

A **slot** is a row of the KV cache. A **row** writes `tokens` into a slot from position `start` on
and asks for the choices after its last `choice_count` tokens. A row rolls back if its `start` is
lower than the cached length: the new tokens overwrite the rejected ones. A **pass** runs a batch of
rows through the model's segments and yields after each, so that the caller can poll its socket in
between.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

TOP = 64
"""Number of candidates that a head returns, in addition to the arg-max."""


class Row(NamedTuple):
    slot: int
    start: int
    tokens: Sequence[int]
    choice_count: int = 1
    """Number of last tokens after which choices are returned; 0 for an inner prompt chunk."""
    hints: bool = False
    """True if the exit heads run for this row."""

    def asks(self, *, final: bool) -> bool:
        """Return True if a head computes choices for this row: the final head, or an exit head."""
        return self.choice_count > 0 and (final or self.hints)


class Choices(NamedTuple):
    """A head's outputs after the last N tokens of one row, N being the row's `choice_count`."""

    argmax: npt.NDArray[np.int64]
    """[N]"""
    top_ids: npt.NDArray[np.int64]
    """[N, TOP], likeliest first; [N, vocabulary] if the vocabulary is smaller than TOP."""
    top_logits: npt.NDArray[Any]
    """[N, TOP]"""
    logits: npt.NDArray[Any]
    """[N, vocabulary]"""

    @property
    def finite(self) -> bool:
        """True if the top logits are numbers; an overflow makes all of them NaN or infinite."""
        return bool(np.isfinite(self.top_logits).all())


HEAD_OUTPUTS = Choices._fields
"""Names of a head's outputs in its graph, in the order of `Choices`."""


class SegmentDone(NamedTuple):
    """Progress of a pass after one segment has run."""

    layer: int
    """Number of layers that have run."""
    final: bool
    """True after the last segment."""
    choices: list[Choices | None]
    """One entry for each row of the batch; None if the row asked nothing of this head."""


class Engine(Protocol):
    """A loaded model with its KV cache. Not thread-safe: one loop owns it."""

    @property
    def vocabulary(self) -> int: ...

    @property
    def context(self) -> int:
        """Largest number of positions of a slot."""

    @property
    def min_tokens(self) -> int:
        """Smallest number of tokens that a row computes; shorter rows are padded to it."""

    @property
    def slots(self) -> int:
        """Number of slots that may be open at once."""

    def slot_bytes(self, positions: int) -> int:
        """Bytes of a slot that holds `positions` positions. Grows in steps, as capacities do."""

    def limit(self, memory_bytes: int) -> None:
        """Limits the memory of all slots, and their number. Call it before the first row."""

    def open(self) -> int:
        """Returns a free, empty slot. Raises `EngineError` when all slots are taken."""

    def close(self, slot: int) -> None:
        """Frees the slot."""

    def rest(self, slot: int) -> None:
        """Moves a slot that stays idle for long away, so that the running slots are neighbours.

        Costs one copy. The next row or copy into the slot brings it back and costs another.
        """

    def truncate(self, slot: int, length: int) -> None:
        """Lowers the cached length to `length`. Costs nothing."""

    def copy(self, source: int, target: int, start: int, end: int) -> None:
        """Copies cached positions `[start, end)` of one slot into another, which then holds `end`.

        Starts a branch of a text or a text with a cached prefix. Raises `ValueError` if `target`
        holds fewer than `start` positions or `source` fewer than `end`. Not while a batch runs.
        """

    def cached(self, slot: int) -> int:
        """Number of positions of the slot that hold keys and values."""

    def run(self, rows: Sequence[Row]) -> Iterator[SegmentDone]:
        """Runs one batch, with at most one row for each slot. The caller exhausts the iterator.

        Raises `ValueError`, before anything has run, if a row starts beyond its slot's cached
        length or ends beyond `context`.
        """


def final_choices(engine: Engine, rows: Sequence[Row]) -> list[Choices | None]:
    """Runs a batch and returns the final head's choices, one entry for each row."""
    *_, last = engine.run(rows)
    return last.choices


def check_rows(engine: Engine, rows: Sequence[Row]) -> None:
    """Raises `ValueError` for a batch that breaks the contract of `Engine.run`."""
    if len({row.slot for row in rows}) != len(rows):
        raise ValueError("a slot stands twice in one batch")
    for row in rows:
        if not row.tokens or not 0 <= row.choice_count <= len(row.tokens):
            raise ValueError(f"{len(row.tokens)} tokens with {row.choice_count} choices asked for")
        if not 0 <= row.start <= engine.cached(row.slot):
            raise ValueError(f"row starts at {row.start}, cached are {engine.cached(row.slot)}")
        if row.start + len(row.tokens) > engine.context:
            raise ValueError(f"row ends at {row.start + len(row.tokens)} of {engine.context}")
        if min(row.tokens) < 0 or max(row.tokens) >= engine.vocabulary:
            raise ValueError(f"a token id outside the vocabulary of {engine.vocabulary}")
