"""Ready sessions that a step leaves out: those that are early, and further ones of a device.

Pure: sessions and the clock in, the sessions that compete for the step and changed turns out.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence

from cloud_runtime.sessions import CloudSession, Turn
from edgespec.policies import SchedulerPolicy

TurnChange = tuple[CloudSession, Turn]


def take_turns(
    sessions: Sequence[CloudSession],
    policy: SchedulerPolicy,
    step_s: Callable[[Sequence[CloudSession]], float],
    now: float,
) -> tuple[list[CloudSession], list[TurnChange]]:
    """Returns the sessions that may be in the step, in order, and the turns that change.

    `step_s`: seconds of a step that decodes for the given sessions.
    """
    early = _early(sessions, policy, now)
    competing = [session for session in sessions if session.id not in early] if early else sessions
    further = _further(competing, policy, step_s, now)
    changes: list[TurnChange] = []
    for session in sessions:
        turn = session.turn
        paused = session.id in early
        left_out = turn.left_out if paused else session.id in further
        if paused != turn.paused or left_out != turn.left_out:
            since = now if left_out != turn.left_out else turn.since
            changes.append((session, Turn(paused, left_out, since)))
    return [session for session in competing if session.id not in further], changes


def _early(
    sessions: Sequence[CloudSession], policy: SchedulerPolicy, now: float
) -> Collection[int]:
    """Ids of sessions that pause: while one is late, those that are early make the step shorter."""
    rated = [session for session in sessions if session.has_deadline]
    if not any(session.due < now for session in rated):
        return ()
    return {
        session.id
        for session in rated
        if session.due - now > (policy.resume_s if session.turn.paused else policy.pause_s)
    }


def _further(
    sessions: Sequence[CloudSession],
    policy: SchedulerPolicy,
    step_s: Callable[[Sequence[CloudSession]], float],
    now: float,
) -> Collection[int]:
    """Ids of sessions that are left out for others of their device.

    Each device has one session in the step. Further ones join while they cost the others little. A
    device that is alone may fill the step.
    """
    by_device: dict[bytes, list[CloudSession]] = {}
    for session in sessions:
        by_device.setdefault(session.connection.peer, []).append(session)
    if not 1 < len(by_device) < len(sessions):
        return ()

    def place(session: CloudSession) -> int:
        """Order among the sessions of a device: in its turn, waiting for it, after it."""
        if session.turn.left_out:
            return 1
        return 0 if now - session.turn.since < policy.turn_s else 2

    for group in by_device.values():
        group.sort(key=place)
    first = [group[0] for group in by_device.values()]
    further = [session for group in by_device.values() for session in group[1:]]
    further.sort(key=lambda session: (place(session), max(session.due, now - policy.lateness_s)))
    allowed_s = (1 + policy.further_sessions_cost) * step_s(first)
    left_out: set[int] = set()
    while further and step_s([*first, *further]) > allowed_s:
        left_out.add(further.pop().id)
    return left_out
