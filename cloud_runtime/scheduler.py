"""Which rows run next. Pure: sessions in, a batch out."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from cloud_runtime.seats import Seat
from edgespec.config import CloudSettings
from engines.base import Row


@dataclass(frozen=True)
class Batch:
    seats: list[Seat]
    rows: list[Row]
    """One for each seat."""


def pick(sessions: Iterable[Seat], settings: CloudSettings) -> Batch | None:
    """Of the sessions that wait, the longest waiting first, up to the batch's tokens; marks them
    as in flight. One row always runs, whatever its length."""
    budget = settings.max_batch_tokens
    batch = Batch([], [])
    for seat in sorted((s for s in sessions if s.ready), key=lambda seat: seat.ready_since):
        row = seat.row(settings.prefill_chunk, hints=settings.hints)
        if batch.rows and len(row.tokens) > budget:
            break
        budget -= len(row.tokens)
        seat.in_flight = True
        batch.seats.append(seat)
        batch.rows.append(row)
    return batch if batch.rows else None
