"""A session as the cloud keeps it, and the rows that it asks of the target."""

from __future__ import annotations

from dataclasses import dataclass, field

from edgespec.protocol import Verdict
from edgespec.sampling import Sampling
from edgespec.session import Session
from engines.base import Row


@dataclass
class Seat:
    """`cached <= len(state.tokens)`: the committed tokens beyond it have yet to be run."""

    peer: bytes
    session: int
    state: Session
    sampling: Sampling
    drafting: bool
    slot: int | None
    heard: float
    """When the device last spoke of this session."""
    ready_since: float
    """When the work that it now waits for arrived; the oldest goes first."""
    cached: int = 0
    round: int = 0
    """Of the last verdict."""
    draft: list[int] | None = field(default_factory=list)
    """What the next verdict is about; None while the device has not sent it. The opening round has
    the empty draft."""
    draft_round: int = 0
    in_flight: bool = False
    verdict: Verdict | None = None
    """The last one, for a device that missed it."""

    @property
    def ready(self) -> bool:
        """Whether the target could do something for it now."""
        return not self.in_flight and not self.state.finish and self.draft is not None

    def row(self, chunk: int, *, hints: bool) -> Row:
        """Its next row: a chunk of what is not cached, or the rest of it and the draft behind."""
        assert self.slot is not None
        assert self.draft is not None
        pending = self.state.tokens[self.cached : self.cached + chunk]
        if self.cached + len(pending) < len(self.state.tokens):
            return Row(self.slot, self.cached, pending, 0)
        return Row(
            self.slot,
            self.cached,
            [*pending, *self.draft],
            len(self.draft) + 1,
            hints and bool(self.draft),
        )
