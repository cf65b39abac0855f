"""The order in which KV-cache slots are taken away if there is no free memory. Pure.

Slots are taken away in this order:

    1  kept entries of ended sessions, the least recently used first
    2  sessions whose device is gone, the longest silent first
    3  sessions that wait for their device, the longest waiting first
    4  if a session has waited `patience_s` for memory: running sessions that have had their turn,
       the one with the latest deadline first

A turn is `turn_s` of decoding, or the time that the session's prefill took if that is longer. So
every session makes progress, and at most half of the time goes into prefilling again. A session
with a row in flight keeps its slot, and so does an entry that other sessions wait for.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from cloud_runtime.memory.prefixes import count
from cloud_runtime.sessions import CloudSession
from edgespec.policies import EvictionPolicy


@dataclass(eq=False)
class CacheEntry:
    """A KV-cache slot in use. Times are seconds of the cloud's clock."""

    slot: int
    size: int
    """Bytes of the slot."""
    tokens: bytes
    """Packed tokens: those that the session had when it got the slot; of a kept entry, all that the
    slot holds."""
    session: CloudSession | None
    """None for a kept entry, whose session has ended."""
    since: float
    """Time at which the session got the slot, or at which a kept entry was last used."""
    decoding_since: float | None = None
    """Time of the first token that the session committed in this slot."""
    domain: bytes = b""
    """Key of the device whose sessions may share the entry; empty: sessions without a domain."""
    references: int = 0
    """Sessions that wait until its prefill reaches the prefix that they share."""

    @property
    def cached(self) -> int:
        """Cached positions."""
        return count(self.tokens) if self.session is None else self.session.cache.length

    @property
    def free(self) -> bool:
        """True for a kept entry that no session waits for."""
        return self.session is None and not self.references

    @property
    def prefilling(self) -> bool:
        """True if its session runs and will cache all tokens that it began with."""
        session = self.session
        return (
            session is not None
            and (session.ready or session.progress.running)
            and session.cache.slot == self.slot
        )


def gone(session: CloudSession, now: float, policy: EvictionPolicy) -> bool:
    """Return True if the session's device is unreachable or silent for `gone_s`."""
    connection = session.connection
    return connection.away or now - connection.heard_at > policy.gone_s


def eviction_rank(
    entry: CacheEntry, now: float, policy: EvictionPolicy, *, preempt: bool
) -> tuple[int, float] | None:
    """Return an entry's rank, which is lowest for the first to be evicted; None if it keeps its
    slot. `preempt`: running sessions may be evicted too."""
    session = entry.session
    if entry.references or (session is not None and session.progress.running):
        return None
    if session is None:
        return 1, entry.since
    if gone(session, now, policy):
        return 2, session.connection.heard_at
    if not session.ready and now - session.ready_since > policy.idle_s:
        return 3, session.ready_since
    if preempt and entry.decoding_since is not None:
        turn_s = max(policy.turn_s, entry.decoding_since - entry.since)
        if now - entry.decoding_since >= turn_s:
            return 4, -session.due
    return None


def victims(
    entries: Iterable[CacheEntry],
    size: int,
    slots: int,
    now: float,
    policy: EvictionPolicy,
    *,
    preempt: bool,
) -> list[CacheEntry] | None:
    """Return the entries to evict so that `size` bytes and `slots` slots become free; None if there
    are not enough."""
    ranked = [(eviction_rank(entry, now, policy, preempt=preempt), entry) for entry in entries]
    order = sorted((rank, n) for n, (rank, _) in enumerate(ranked) if rank is not None)
    evicted: list[CacheEntry] = []
    for _, number in order:
        if size <= 0 and len(evicted) >= slots:
            break
        evicted.append(ranked[number][1])
        size -= evicted[-1].size
    return evicted if size <= 0 and len(evicted) >= slots else None
