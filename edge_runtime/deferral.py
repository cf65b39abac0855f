"""When to ask again, after a cloud was full or has shut down. Pure: told the time and the error."""

from __future__ import annotations

import random

from edgespec.errors import LinkError
from edgespec.protocol import Error

SOONEST, LATEST = 0.1, 10.0
"""Seconds; what a cloud may ask for."""
SPREAD = 0.5
"""Of that time either way, lest all devices of a cloud that went down come back at once."""


class Deferral:
    """Of one answer. Every further refusal puts it off again, for `give_up` seconds in all."""

    def __init__(self, give_up: float, chance: random.Random) -> None:
        self._give_up = give_up
        self._chance = chance
        self._since: float | None = None
        self._at: float | None = None

    @property
    def waiting(self) -> bool:
        return self._at is not None

    def put_off(self, error: Error, now: float) -> float:
        """Seconds until the next try. Raises `LinkError` once it has gone on for too long."""
        if self._since is None or now < self._since:  # a clock that jumped
            self._since = now
        if now - self._since >= self._give_up:
            raise LinkError(
                f"the cloud refused for {now - self._since:.0f} s: {error.message}",
                code=error.code,
                retryable=True,
            )
        wait = min(max(error.retry_ms / 1e3, SOONEST), LATEST)
        wait *= 1 + SPREAD * self._chance.uniform(-1, 1)
        wait = min(wait, self._since + self._give_up - now)
        self._at = now + wait
        return wait

    def left(self, now: float) -> float:
        """Seconds until the next try is due."""
        left = 0.0 if self._at is None else self._at - now
        return max(0.0, left) if left <= (1 + SPREAD) * LATEST else 0.0

    def tried(self) -> None:
        self._at = None

    def served(self) -> None:
        """The cloud has taken the session."""
        self._since = self._at = None
