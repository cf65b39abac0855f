"""Tunable numbers of the two runtimes, as frozen dataclasses that benches can vary.

A number belongs here if changing it changes speed, memory or waiting, and never the text. Limits of
the wire format stand in `edgespec.protocol`. Units are in the names: `_s` seconds, `_tokens`,
`_rows`, `_bytes`, `_steps`; a name without a unit is a ratio or a probability.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class SchedulerPolicy:
    """How the cloud chooses the rows of its next step."""


@dataclass(frozen=True)
class EvictionPolicy:
    """When the cloud takes KV-cache slots away, and what it keeps for later sessions."""


@dataclass(frozen=True)
class ModePolicy:
    """When a device starts and stops drafting."""


@dataclass(frozen=True)
class DraftPolicy:
    """Which drafting steps a device takes, and when drafted tokens are sent."""


@dataclass(frozen=True)
class LinkLimits:
    """Bounds of queues, packets and silence on a link."""

    connections: int = 4096
    """Connections of a cloud; fewer where its file descriptors do not suffice."""
    hello_timeout_s: float = 10.0
    """Time within which a new connection must have sent a valid Hello."""
    hello_bytes: int = 65_536
    """Bytes of a connection that may wait before its Hello is read."""
    backlog_bytes: int = 1 << 20
    """Bytes of a connection, beyond one packet of the largest size, that may wait to be read."""
    total_backlog_bytes: int = 64 << 20
    """Bytes of all connections that may wait to be read."""
    guard_interval_s: float = 0.01
    """Interval at which connections are compared with these bounds."""
