"""Figures of `edgespec bench serve`."""

from __future__ import annotations

import msgspec

from engines.machine.doctor import Machine


class Side(msgspec.Struct, frozen=True):
    """Answers of one side: the client in a program, or the server."""

    name: str
    first_token_ms: float
    """Median time from the request to the first text."""
    token_ms: float
    """Median over the answers of the time between two tokens."""
    cpu_token_ms: float
    """Processor time of the side's process for each token."""


class Beside(msgspec.Struct, frozen=True):
    """Both sides in turns."""

    client: Side
    server: Side
    first_token_added_ms: float
    """Median over the turns of the server's time less the client's."""
    token_added_ms: float


class Together(msgspec.Struct, frozen=True):
    """Streams at once."""

    streams: int
    identical: bool
    """True if all have the text of an answer alone."""
    tokens_per_second: float
    slowest_first_token_ms: float


class Memory(msgspec.Struct, frozen=True):
    """Resident memory of the server, in 10^6 bytes."""

    requests: int
    before_mb: float
    """After the first tenth of the requests."""
    after_mb: float
    requests_per_second: float

    @property
    def growth_mb(self) -> float:
        return self.after_mb - self.before_mb


class Fuzz(msgspec.Struct, frozen=True):
    """Bad requests."""

    requests: int
    statuses: dict[str, int]
    """Requests by status; `none`: the server closed the connection of what is no HTTP."""
    failures: list[str]
    """Requests that got a status of 500 or above, or a reply in another form than OpenAI's."""


class ServeFigures(msgspec.Struct, frozen=True, kw_only=True):
    machine: Machine
    target: str
    beside: Beside
    together: Together | None
    memory: Memory | None
    fuzz: Fuzz | None
