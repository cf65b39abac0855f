"""When to open a session again after the cloud was full or shut down. Pure."""

from __future__ import annotations

import random

from edgespec.errors import LinkError
from edgespec.protocol import Error

SHORTEST_WAIT_S, LONGEST_WAIT_S = 0.1, 10.0
"""Bounds of the time that a cloud may ask for."""
SPREAD_RATIO = 0.5
"""Random part of that time, either way, so that the devices of a cloud that went down do not all
return at once."""


class Deferral:
    """The retries of one answer. Refusals may go on for `give_up` seconds in all."""

    def __init__(self, give_up: float, chance: random.Random) -> None:
        self._give_up = give_up
        self._chance = chance
        self._since: float | None = None
        """Time of the first refusal."""
        self._at: float | None = None
        """Time of the next try."""

    @property
    def waiting(self) -> bool:
        return self._at is not None

    def put_off(self, error: Error, now: float) -> float:
        """Seconds until the next try. Raises `LinkError` after `give_up` seconds of refusals."""
        if self._since is None or now < self._since:  # the clock has jumped
            self._since = now
        if now - self._since >= self._give_up:
            raise LinkError(
                f"the cloud refused for {now - self._since:.0f} s: {error.message}",
                code=error.code,
                retryable=True,
            )
        wait = min(max(error.retry_ms / 1e3, SHORTEST_WAIT_S), LONGEST_WAIT_S)
        wait *= 1 + SPREAD_RATIO * self._chance.uniform(-1, 1)
        wait = min(wait, self._since + self._give_up - now)
        self._at = now + wait
        return wait

    def left(self, now: float) -> float:
        """Seconds until the next try is due; 0 if none is planned or the clock has jumped."""
        left = 0.0 if self._at is None else self._at - now
        return max(0.0, left) if left <= (1 + SPREAD_RATIO) * LONGEST_WAIT_S else 0.0

    def tried(self) -> None:
        """The session was opened again; the reply is awaited."""
        self._at = None

    def served(self) -> None:
        """The cloud has accepted the session."""
        self._since = self._at = None
