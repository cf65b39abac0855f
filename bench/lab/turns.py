"""Turns in which methods are measured, so that a machine whose speed drifts treats them alike."""

from __future__ import annotations

from collections.abc import Sequence


def rotated(names: Sequence[str], turn: int) -> list[str]:
    """The same names, beginning with another one on each turn."""
    start = turn % len(names)
    return [*names[start:], *names[:start]]
