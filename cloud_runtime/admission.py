"""Whether a session may come: yes, later (with how long), or no (with why). Pure."""

from __future__ import annotations

FIRST_GUESS = 5.0
"""Seconds of an answer, before any has ended."""
LEARN = 0.1
LONGEST = 10.0
"""Seconds that a session is let wait for memory; who would wait longer is asked to come later."""


def waiting_time(ahead: int, active: int, seconds: float) -> float:
    """Seconds until `ahead` sessions have ended, of `active` that last so long each: by Little's
    law `active / seconds` of them end a second."""
    return ahead * seconds / max(active, 1)


class AnswerDurations:
    """How long answers have lately taken, from opening to end."""

    def __init__(self) -> None:
        self.seconds = FIRST_GUESS
        self._ended = 0

    def ended(self, seconds: float) -> None:
        """The first ones count as much as each other, later ones more than those long ago."""
        self._ended += 1
        self.seconds += max(LEARN, 1 / self._ended) * (seconds - self.seconds)
