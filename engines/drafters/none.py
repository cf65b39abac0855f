"""The drafter of a device that leaves decoding to the cloud."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from edgespec.config import NO_DRAFTER
from engines.drafters.base import DraftRequest, Guess


class NoDrafter:
    """A drafter without guesses."""

    name = NO_DRAFTER
    batch = 1
    acceptance = 0.0

    def guess(self, requests: Sequence[DraftRequest]) -> list[Guess | None]:
        return [None] * len(requests)

    def retain(self, sessions: Collection[int]) -> None:
        """There is nothing to forget."""
