"""When to open a session again after the cloud was full or shut down. Pure."""

from __future__ import annotations

import random

from edgespec.errors import LinkError
from edgespec.policies import LinkLimits
from edgespec.protocol import Error


class Deferral:
    """The retries of one answer. Refusals may go on for `give_up` seconds without a new token."""

    def __init__(
        self, give_up: float, chance: random.Random, limits: LinkLimits = LinkLimits()
    ) -> None:
        self._give_up = give_up
        self._chance = chance
        self._limits = limits
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
        limits = self._limits
        wait = min(max(error.retry_ms / 1e3, limits.shortest_retry_s), limits.longest_retry_s)
        wait *= 1 + limits.retry_spread * self._chance.uniform(-1, 1)
        wait = min(wait, self._since + self._give_up - now)
        self._at = now + wait
        return wait

    def left(self, now: float) -> float:
        """Seconds until the next try is due; 0 if none is planned or the clock has jumped."""
        left = 0.0 if self._at is None else self._at - now
        longest = (1 + self._limits.retry_spread) * self._limits.longest_retry_s
        return max(0.0, left) if left <= longest else 0.0

    def tried(self) -> None:
        """The session was opened again, or accepted; its tokens are awaited."""
        self._at = None

    def served(self) -> None:
        """The cloud has sent tokens of the session."""
        self._since = self._at = None
