"""What a cloud shows of itself: the JSON of `/fleet`, written there and read by `edgespec top`.

Times are seconds, rates tokens a second, memory bytes.
"""

from __future__ import annotations

from typing import Literal

import msgspec

from edgespec.energy_report import Energy

State = Literal["running", "reading", "waiting", "evicted", "away"]
"""Of a session: tokens come; its prompt is read; it waits to begin; its slot was lent to another;
its device cannot be reached."""
STATES: tuple[State, ...] = ("running", "reading", "waiting", "evicted", "away")


class SessionView(msgspec.Struct, frozen=True, kw_only=True):
    session: str
    """As log lines write it."""
    device: str
    drafter: str
    hardware: str
    mode: str
    """Who drafts: `edge`, `edge + cloud-draft`, `cloud-draft` or `cloud`."""
    state: State
    tokens: int
    """Of the answer, so far."""
    rate: float
    target_rate: float
    """Tokens a second that its device asked for; 0: as fast as possible."""
    verified: int
    confirmed: int
    reaction: float
    """From a verdict's leaving to the device's first id after it: the round trip and a draft step;
    0: not known."""
    seconds: float
    """Since it was opened."""

    @property
    def acceptance(self) -> float:
        return self.confirmed / self.verified if self.verified else 0.0


class DeviceView(msgspec.Struct, frozen=True, kw_only=True):
    name: str
    drafter: str
    hardware: str
    silent: float
    """Since it last said anything."""
    sessions: int
    away: str
    """Why it cannot be reached; empty: it can."""
    troubles: dict[str, int]
    """Packets by what was wrong with them."""


class Fleet(msgspec.Struct, frozen=True, kw_only=True):
    target: str
    state: Literal["loading", "ready", "draining"]
    uptime: float = 0.0
    endpoint: str = ""
    step: float = 0.0
    """A step of the target, on average over the last seconds."""
    step_error: float = 0.0
    """Median relative error of the predicted time of a step that decodes or verifies."""
    prompt_step_error: float = 0.0
    """The same of a step over prompts."""
    rows: float = 0.0
    width: float = 0.0
    """Sessions and tokens of a step, likewise."""
    rate: float = 0.0
    """Of all sessions together, likewise."""
    acceptance: float = 0.0
    """Confirmed of verified ids, likewise; 0 where none were."""
    memory_used: int = 0
    """Of the KV cache, by open sessions."""
    memory_kept: int = 0
    """By texts that are kept because others may begin with them; given up when room is wanted."""
    memory_limit: int = 0
    evictions: int = 0
    """Slots taken from sessions, which read their text again when they go on."""
    read_again: int = 0
    """Tokens that were computed again because of that."""
    prefix_queries: int = 0
    prefix_hits: int = 0
    """Tokens that sessions began with, and those of them that were in the cache."""
    energy: Energy | None = None
    """Of the cloud's machine since it began to listen; None: nobody asked."""
    sessions: tuple[SessionView, ...] = ()
    devices: tuple[DeviceView, ...] = ()
    """Those that were heard of in the last minute, or have a session."""
