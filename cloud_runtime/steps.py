"""Steps that the cloud runs: a batch of the target, a step of the cloud draft, or a wait."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

from cloud_runtime.paths import CandidatePath
from cloud_runtime.sessions import CloudSession
from engines.base import Row


class BatchRow(NamedTuple):
    """A row of a batch, the session that it is for, and what it verifies."""

    session: CloudSession
    row: Row
    path: CandidatePath | None = None
    """The path that the draft tokens come from; None: there are none."""
    draft: Sequence[int] = ()
    """Draft tokens at the end of the row."""


@dataclass(frozen=True)
class Batch:
    """A step of the target, at most one row a session."""

    entries: Sequence[BatchRow]

    @cached_property
    def sessions(self) -> list[CloudSession]:
        return [entry.session for entry in self.entries]

    @cached_property
    def rows(self) -> list[Row]:
        """Rows for the engine."""
        return [entry.row for entry in self.entries]

    @property
    def width(self) -> int:
        """Tokens of the longest row."""
        return max(len(row.tokens) for row in self.rows)

    @property
    def cached(self) -> int:
        """Positions that were cached before the step."""
        return sum(row.start for row in self.rows)


@dataclass(frozen=True)
class DraftStep:
    """A step of the cloud draft: one more draft token for each session."""

    sessions: list[CloudSession]
    width: int = 1
    """Largest number of tokens that it reads for a session."""


@dataclass(frozen=True)
class Wait:
    seconds: float | None
    """Longest wait for messages; None: only a message changes anything."""


Step = Batch | DraftStep | Wait
