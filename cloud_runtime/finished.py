"""Finished sessions, kept for devices that missed the last verdict: how many, and whose. Pure."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator

from cloud_runtime.sessions import CloudSession
from edgespec.policies import SchedulerPolicy


def surplus(finished: Iterable[CloudSession], policy: SchedulerPolicy) -> Iterator[CloudSession]:
    """Finished sessions above the bounds of all devices or of one; the last to finish are kept.

    A session takes the larger of its shares of all sessions and of all tokens. The last one that a
    device finished is kept also if it alone exceeds the device's share.
    """
    total, held = 0.0, defaultdict[bytes, float](float)
    for session in sorted(finished, key=lambda each: each.progress.ended_at, reverse=True):
        device = session.owner.key or session.connection.peer
        share = max(1 / policy.finished_sessions, session.kept_tokens / policy.finished_tokens)
        full = held[device] and held[device] + share > policy.finished_device_share
        if full or total + share > 1:
            yield session
            continue
        total += share
        held[device] += share
