"""Whose slot is taken away where there is no room for another. Pure.

Slots are taken away in this order:

    1  of kept texts, those not used for longest first
    2  of sessions whose device is gone, those not heard for longest first
    3  of sessions that wait for their device, those that do so for longest first
    4  for a session that has waited `PATIENCE`: of those that have had their turn, the one whose
       next token is due last

A session has had its turn when it has written for `QUANTUM`, and as long as reading its text took;
so everyone gets on, and at most half of the time goes into reading texts again. A session whose
row is in flight keeps its slot, and so does a text that others wait for.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from cloud_runtime.memory.prefixes import count
from cloud_runtime.sessions import CloudSession

PATIENCE = 1.0
"""Seconds that a session waits before it takes a slot from another that runs."""
QUANTUM = 2.0
"""Seconds of writing."""
IDLE = 1.0
"""Seconds after which a session that waits for its device is idle. A round trip is no idling."""
GONE = 5.0
"""Seconds of silence after which a device is taken for gone. It pings every second."""


@dataclass(eq=False)
class CacheEntry:
    """A slot and whose text it holds."""

    slot: int
    size: int
    """Bytes of the slot."""
    tokens: bytes
    """Packed: what its session began with or, of a kept text, all that the slot holds."""
    session: CloudSession | None
    """None: it is kept."""
    since: float
    """When its session got the slot or, of a kept text, when it was last used."""
    settled: float | None = None
    """When its session's first token after that was seen."""
    references: int = 0
    """Sessions that wait for what is still being read."""

    @property
    def cached(self) -> int:
        return count(self.tokens) if self.session is None else self.session.cache.length

    @property
    def free(self) -> bool:
        """Kept, and nobody waits for it."""
        return self.session is None and not self.references


def gone(session: CloudSession, now: float) -> bool:
    return session.connection.away or now - session.connection.heard_at > GONE


def place_in_order(text: CacheEntry, now: float, *, pressing: bool) -> tuple[int, float] | None:
    """Where a text stands in the order in which slots are taken away, least first; None: it keeps
    its slot. `pressing`: also the running are asked."""
    session = text.session
    if text.references or (session is not None and session.progress.running):
        return None
    if session is None:
        return 1, text.since
    if gone(session, now):
        return 2, session.connection.heard_at
    if not session.ready and now - session.ready_since > IDLE:
        return 3, session.ready_since
    if pressing and text.settled is not None:
        turn = max(QUANTUM, text.settled - text.since)
        if now - text.settled >= turn:
            return 4, -session.due
    return None


def victims(
    texts: Iterable[CacheEntry], size: int, slots: int, now: float, *, pressing: bool
) -> list[CacheEntry] | None:
    """Whose slots to take away so that `size` bytes and so many slots become free; None where that
    cannot be."""
    places = [(place_in_order(text, now, pressing=pressing), text) for text in texts]
    order = sorted((place, n) for n, (place, _) in enumerate(places) if place is not None)
    taken: list[CacheEntry] = []
    for _, number in order:
        if size <= 0 and len(taken) >= slots:
            break
        taken.append(places[number][1])
        size -= taken[-1].size
    return taken if size <= 0 and len(taken) >= slots else None
