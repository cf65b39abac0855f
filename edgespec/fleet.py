"""State of a cloud as the JSON of `/fleet`, which `edgespec top` reads.

Times are in seconds, rates in tokens per second, memory in bytes. "Recent" means the last seconds.
"""

from __future__ import annotations

from typing import Any, Literal

import msgspec

from edgespec.energy_report import Count, Energy
from edgespec.plain_text import plain

State = Literal["running", "reading", "waiting", "evicted", "away"]
"""State of a session: it decodes; its prompt is run; it waits for its first slot; its slot was
taken away; its device cannot be reached."""
STATES: tuple[State, ...] = ("running", "reading", "waiting", "evicted", "away")


class SessionView(msgspec.Struct, frozen=True, kw_only=True):
    session: str
    """Session id, hexadecimal as in log lines."""
    device: str
    drafter: str
    hardware: str
    mode: str
    """Sides that draft: `edge`, `edge + cloud-draft`, `cloud-draft` or `cloud`."""
    state: State
    tokens: Count
    """Tokens of the answer so far."""
    rate: float
    """Measured tokens per second."""
    target_rate: float
    """Tokens per second that its device asked for; 0: as fast as possible."""
    verified: Count
    """Draft tokens that the target verified."""
    confirmed: Count
    """Verified draft tokens that are the target's own."""
    reaction: float
    """Time from sending a verdict to the device's first draft token after it, which is the round
    trip and a draft step; 0: unknown."""
    seconds: float
    """Time since it was opened."""

    @property
    def acceptance(self) -> float:
        """Share of verified draft tokens that were confirmed; 0 where none were verified."""
        return self.confirmed / self.verified if self.verified else 0.0


class DeviceView(msgspec.Struct, frozen=True, kw_only=True):
    name: str
    drafter: str
    hardware: str
    silent: float
    """Time since its last packet."""
    sessions: Count
    away: str
    """Reason why messages do not reach it; empty: they do."""
    troubles: dict[str, Count]
    """Dropped packets and unsent messages by reason."""


class Fleet(msgspec.Struct, frozen=True, kw_only=True):
    target: str
    state: Literal["loading", "ready", "draining"]
    uptime: float = 0.0
    endpoint: str = ""
    step: float = 0.0
    """Mean duration of a recent step of the target."""
    step_error: float = 0.0
    """Median relative error of the predicted time of a step that decodes or verifies."""
    prompt_step_error: float = 0.0
    """Median relative error of the predicted time of a step over prompts."""
    rows: float = 0.0
    """Mean rows of a recent step."""
    width: float = 0.0
    """Mean tokens of a recent step, over all its rows."""
    rate: float = 0.0
    """Recent tokens per second of all sessions together."""
    acceptance: float = 0.0
    """Share of recently verified draft tokens that were confirmed; 0 where none were verified."""
    memory_used: Count = 0
    """KV cache of open sessions."""
    memory_kept: Count = 0
    """KV cache kept of ended sessions for prompts with the same prefix; freed on demand."""
    memory_limit: Count = 0
    """Bound of the KV cache."""
    evictions: Count = 0
    """Slots taken away from open sessions."""
    read_again: Count = 0
    """Tokens that were run again after an eviction."""
    prefix_queries: Count = 0
    """Tokens that sessions began with."""
    prefix_hits: Count = 0
    """Tokens that sessions began with and that were in the cache."""
    energy: Energy | None = None
    """Energy of the cloud's machine since it began to listen; None: not measured."""
    sessions: tuple[SessionView, ...] = ()
    devices: tuple[DeviceView, ...] = ()
    """Devices that sent a packet in the last minute or have a session."""


def decode(content: bytes) -> Fleet:
    """The fleet in the JSON of `/fleet`, with every text plain: it may come from a hostile machine.

    Raises `msgspec.DecodeError`, `UnicodeDecodeError`, or `RecursionError` for deeply nested JSON.
    """
    return msgspec.convert(_with_plain_texts(msgspec.json.decode(content)), Fleet)


def _with_plain_texts(value: Any) -> Any:
    if isinstance(value, str):
        return plain(value)
    if isinstance(value, dict):
        return {plain(name): _with_plain_texts(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [_with_plain_texts(each) for each in value]
    return value
