"""Delays and losses of an emulated link."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass

from edgespec.errors import UsageError


@dataclass(frozen=True)
class LinkShape:
    """Delay, jitter, bandwidth and stalls of a link. The default passes bytes on unchanged."""

    rtt_ms: float = 0.0
    """Round-trip time; half of it is added each way."""
    jitter_ms: float = 0.0
    """Standard deviation of the one-way delay."""
    mbit: float = 0.0
    """Bandwidth each way, in 10^6 bits a second; 0 is unlimited."""
    stall_every: float = 0.0
    """Mean seconds between stalls, exponentially distributed; 0 is never. A stall is what a lost
    packet looks like through TCP."""
    stall_ms: float = 200.0
    """Length of a stall: nothing is delivered either way, then everything at once."""
    seed: int = 0

    def check(self) -> None:
        """Raises `UsageError` for a value that no link can have."""
        for name, value in asdict(self).items():
            if name != "seed" and not (math.isfinite(value) and value >= 0):
                raise UsageError(f"a link's {name} is {value}; give a finite number, 0 or more")
