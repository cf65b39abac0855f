"""Settings of `bench.serve.run`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class ServeSettings:
    bundle: Path | None = None
    """None: a target of random weights whose step takes almost no time."""
    turns: int = 40
    """Answers of each side that are compared."""
    tokens: int = 64
    """Tokens of an answer."""
    streams: int = 64
    """Answers that are streamed at once."""
    requests: int = 2000
    """Requests after which the server's memory is compared."""
    fuzz: int = 0
    """Bad requests; 0: none."""
    seed: int = 0
    """Decides the bad requests."""
