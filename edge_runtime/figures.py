"""What a device has measured so far, over all its answers."""

from __future__ import annotations

import msgspec


class DeviceFigures(msgspec.Struct, frozen=True, kw_only=True):
    mode: str
    """What drafts now, as `--explain` shows it."""
    reason: str
    """Why that mode was chosen."""
    answers: int
    """Number of answers being written."""
    round_trip_ms: float
    """Shortest of the last round trips; 0: none was measured."""
    target_step_ms: float
    """Time of a target step for one token, smoothed."""
    draft_step_ms: float
    """Median of the last draft steps; 0: none was made."""
    agreement: float
    """Share of drafted tokens that are the target's, smoothed; a guess before the first verdict."""
    bytes_up: int
    """Bytes sent over this link."""
    bytes_down: int
