"""A cloud's state as a value that people and other processes may look at. Pure."""

from __future__ import annotations

from collections import Counter, deque
from typing import NamedTuple

from cloud_runtime.devices import ConnectedDevice
from cloud_runtime.service import Service
from cloud_runtime.sessions import CloudSession
from cloud_runtime.status.tally import Tally
from edgespec.fleet import DeviceView, Fleet, SessionView, State
from edgespec.protocol import Terms

WINDOW = 5.0
"""Seconds that averages look back."""
QUIET = 60.0
"""Seconds of silence after which a device without a session is no longer shown."""
READING = 2
"""Tokens that have yet to be read, above which a session is at its prompt."""


class Mark(NamedTuple):
    """Totals at some moment."""

    when: float
    tokens: float
    verified: float
    confirmed: float
    steps: float
    seconds: float
    rows: float
    width: float


class Recent:
    """Averages over the last seconds, from totals as they were."""

    def __init__(self) -> None:
        self._marks: deque[Mark] = deque()

    def since(self, tally: Tally, now: float) -> Mark:
        """What has come since some `WINDOW` seconds ago."""
        last = Mark(
            now, tally.tokens, tally.verified, tally.confirmed, sum(tally.step_seconds.counts),
            tally.step_seconds.sum, tally.step_rows.sum, tally.step_tokens.sum,
        )  # fmt: skip
        self._marks.append(last)
        while len(self._marks) > 2 and now - self._marks[1].when >= WINDOW:
            self._marks.popleft()
        first = self._marks[0]
        return Mark(*(b - a for a, b in zip(first, last, strict=True)))


def view(service: Service, recent: Recent, now: float, target: str, endpoint: str) -> Fleet:
    """What `/fleet` says, but for the uptime."""
    mark = recent.since(service.tally, now)
    steps = max(mark.steps, 1)
    open_sessions = service.sessions.unfinished
    open_ = Counter(session.connection.peer for session in open_sessions)
    memory = service.memory
    return Fleet(
        target=target,
        endpoint=endpoint,
        state="draining" if service.sessions.draining else "ready",
        step=mark.seconds / steps,
        step_error=service.speeds.costs.error,
        prompt_step_error=service.speeds.chunks.error,
        rows=mark.rows / steps,
        width=mark.width / steps,
        rate=mark.tokens / mark.when if mark.when > 0 else 0.0,
        acceptance=mark.confirmed / mark.verified if mark.verified else 0.0,
        memory_used=memory.session_bytes,
        memory_kept=memory.kept_bytes,
        memory_limit=memory.limit,
        evictions=memory.counts.evictions,
        read_again=memory.counts.read_again,
        prefix_queries=memory.counts.prefix_queries,
        prefix_hits=memory.counts.prefix_hits,
        sessions=tuple(
            _session(session, service.devices.get(session.connection.peer), now)
            for session in open_sessions
        ),
        devices=tuple(
            _device(device, open_[device.peer], now)
            for device in service.devices
            if open_[device.peer] or (now - device.heard_at < QUIET and device.away != "gone")
        ),
    )


def _session(session: CloudSession, device: ConnectedDevice | None, now: float) -> SessionView:
    record = session.record
    return SessionView(
        session=f"{session.id:x}",
        device=device.name if device else "",
        drafter=device.drafter if device else "",
        hardware=device.hardware if device else "",
        mode=mode(session.terms),
        state=_state(session),
        tokens=len(session.state.tokens) - session.state.prompt_length,
        rate=record.rate,
        promised=session.terms.target_rate,
        verified=record.verified,
        confirmed=record.confirmed,
        reaction=session.drafts.arrivals.reaction_s,
        seconds=now - record.opened,
    )


def mode(terms: Terms) -> str:
    if terms.drafting:
        return "edge + cloud-draft" if terms.cloud_draft else "edge"
    return "cloud-draft" if terms.cloud_draft else "cloud"


def _state(session: CloudSession) -> State:
    if session.connection.away:
        return "away"
    if session.cache.slot is None:
        return "evicted" if session.record.first_verdict_at else "waiting"
    return "reading" if session.pending > READING else "running"


def _device(device: ConnectedDevice, sessions: int, now: float) -> DeviceView:
    return DeviceView(
        name=device.name,
        drafter=device.drafter,
        hardware=device.hardware,
        silent=now - device.heard_at,
        sessions=sessions,
        away=device.away or "",
        troubles=dict(device.troubles.items()),
    )
