"""The state of a cloud as an immutable value for `/fleet` and the metrics. Pure."""

from __future__ import annotations

from collections import Counter, deque
from typing import NamedTuple

from cloud_runtime.devices import ConnectedDevice
from cloud_runtime.service import Service
from cloud_runtime.sessions import CloudSession
from cloud_runtime.status.tally import Tally
from edgespec.fleet import DeviceView, Fleet, SessionView, State
from edgespec.protocol import Terms
from edgespec.session import alias

WINDOW_S = 5.0
"""Period over which averages are taken."""
SHOWN_SILENCE_S = 60.0
"""Silence after which a device without a session is not shown any more."""
DECODING_TOKENS = 2
"""Uncached tokens above which a session is in prefill."""


class Totals(NamedTuple):
    """Sums since the start of the cloud, or their differences between two times."""

    seconds: float
    """Seconds of the cloud's clock."""
    tokens: float
    verified: float
    confirmed: float
    steps: float
    step_seconds: float
    step_rows: float
    step_tokens: float


class Recent:
    """Remembers totals, for averages over the last seconds."""

    def __init__(self) -> None:
        self._totals: deque[Totals] = deque()

    def since(self, tally: Tally, now: float) -> Totals:
        """Return how much the totals grew since about `WINDOW_S` ago."""
        last = Totals(
            now, tally.tokens, tally.verified, tally.confirmed, sum(tally.step_seconds.counts),
            tally.step_seconds.sum, tally.step_rows.sum, tally.step_tokens.sum,
        )  # fmt: skip
        self._totals.append(last)
        while len(self._totals) > 2 and now - self._totals[1].seconds >= WINDOW_S:
            self._totals.popleft()
        first = self._totals[0]
        return Totals(*(b - a for a, b in zip(first, last, strict=True)))


def view(service: Service, recent: Recent, now: float, target: str, endpoint: str) -> Fleet:
    """Return the content of `/fleet`, without uptime and energy."""
    growth = recent.since(service.tally, now)
    steps = max(growth.steps, 1)
    open_sessions = service.sessions.unfinished
    open_by_peer = Counter(session.connection.peer for session in open_sessions)
    memory = service.memory
    return Fleet(
        target=target,
        endpoint=endpoint,
        state="draining" if service.sessions.draining else "ready",
        step=growth.step_seconds / steps,
        step_error=service.speeds.costs.error,
        prompt_step_error=service.speeds.chunks.error,
        rows=growth.step_rows / steps,
        width=growth.step_tokens / steps,
        rate=growth.tokens / growth.seconds if growth.seconds > 0 else 0.0,
        acceptance=growth.confirmed / growth.verified if growth.verified else 0.0,
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
            _device(device, open_by_peer[device.peer], now)
            for device in service.devices
            if open_by_peer[device.peer]
            or (now - device.heard_at < SHOWN_SILENCE_S and device.away != "gone")
        ),
    )


def _session(session: CloudSession, device: ConnectedDevice | None, now: float) -> SessionView:
    record = session.record
    return SessionView(
        session=alias(session.id),
        device=device.name if device else "",
        drafter=device.drafter if device else "",
        hardware=device.hardware if device else "",
        mode=mode(session.terms),
        state=_state(session),
        tokens=len(session.state.tokens) - session.state.prompt_length,
        rate=record.rate,
        target_rate=session.terms.target_rate,
        verified=record.verified,
        confirmed=record.confirmed,
        reaction=session.drafts.arrivals.reaction_s,
        seconds=now - record.opened,
    )


def mode(terms: Terms) -> str:
    """Return who drafts: the mode's name as users know it."""
    if terms.drafting:
        return "edge + cloud-draft" if terms.cloud_draft else "edge"
    return "cloud-draft" if terms.cloud_draft else "cloud"


def _state(session: CloudSession) -> State:
    if session.connection.away:
        return "away"
    if session.cache.slot is None:
        return "evicted" if session.record.first_verdict_at else "waiting"
    return "reading" if session.pending > DECODING_TOKENS else "running"


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
