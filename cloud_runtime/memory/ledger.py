"""The sessions' KV-cache slots: a ledger in bytes, eviction, and shared prefixes.

All slots together stay within the limit. If there is no room, slots are taken away in the order of
`cloud_runtime.memory.eviction`. An evicted session is like one that was just opened with all its
committed tokens: it is prefilled again when it gets another slot.

The slot of an ended session is kept with its contents until the memory is needed. A session whose
tokens share a prefix with another entry, running or kept, starts from a copy of that prefix. If the
other session is still being prefilled, it waits; an entry that is waited for keeps its slot. Where
devices have keys, only sessions of one key share prefixes, so that the time of a prefill does not
tell one device whether another's prompt is cached.

The ledger opens, copies and closes the engine's slots. It never runs the engine.
"""

from __future__ import annotations

import logging
from bisect import bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from cloud_runtime.memory.entries import CacheEntries, SharedPrefix
from cloud_runtime.memory.eviction import CacheEntry, gone
from cloud_runtime.memory.limits import megabytes
from cloud_runtime.memory.prefixes import count, packed
from cloud_runtime.sessions import CloudSession
from edgespec.errors import EngineError, UsageError
from edgespec.policies import EvictionPolicy
from engines.base import Engine

log = logging.getLogger("edgespec.cloud")


@dataclass(eq=False)
class SlotRequest:
    """A ready session that lacks memory for its next row."""

    session: CloudSession
    since: float
    """Time since which it waits, in seconds of the cloud's clock."""
    size: int = 0
    """Bytes that its slot needs."""
    preempt: bool = False
    """True if it may take the slots of running sessions."""
    awaited: SharedPrefix | None = None
    """The prefix that it waits for."""

    def wait_for(self, prefix: SharedPrefix) -> None:
        prefix.entry.references += 1
        self.awaited = prefix

    def stop_waiting(self) -> None:
        if self.awaited is not None:
            self.awaited.entry.references -= 1
            self.awaited = None


class _Lent(NamedTuple):
    slot: int
    size: int
    """Bytes."""
    cached: int
    """Positions that the slot holds already."""


@dataclass
class MemoryCounts:
    prefix_queries: int = 0
    """Tokens of sessions that got a slot."""
    prefix_hits: int = 0
    """Tokens of them that came from a shared prefix."""
    evictions: int = 0
    """Slots taken from sessions."""
    read_again: int = 0
    """Tokens that were computed again after evictions."""


def needed_positions(length: int, remaining: int, max_draft_tokens: int) -> int:
    """Return the positions that a session of `length` committed tokens, with `remaining` to come,
    needs until its next committed token."""
    return length + max(0, min(max_draft_tokens, remaining - 1))


class Memory:
    """The ledger of all KV-cache slots of the target."""

    def __init__(
        self, engine: Engine, limit: int, policy: EvictionPolicy = EvictionPolicy()
    ) -> None:
        """`limit`: bytes of all slots. Raises `UsageError` if the smallest slot exceeds it."""
        smallest = engine.slot_bytes(1)
        if limit < smallest:
            raise UsageError(
                f"{megabytes(limit)} of KV cache hold no session: the smallest needs "
                f"{megabytes(smallest)}; raise --kv-memory"
            )
        self.limit = limit
        self.counts = MemoryCounts()
        self._engine = engine
        self._policy = policy
        self._entries = CacheEntries(engine, limit, policy)
        self._requests: dict[int, SlotRequest] = {}
        """Requests for memory by session id."""

    @property
    def context(self) -> int:
        """Positions that one session may have."""
        sizes = range(1, self._engine.context + 1)
        return bisect_right(sizes, self.limit, key=self._engine.slot_bytes)

    @property
    def session_bytes(self) -> int:
        """Bytes of the slots of open sessions."""
        return self._entries.session_bytes

    @property
    def kept_bytes(self) -> int:
        """Bytes of the slots of ended sessions."""
        return self._entries.kept_bytes

    @property
    def waiting(self) -> int:
        """Number of ready sessions that wait for memory or for a shared prefix."""
        return len(self._requests)

    def fits(self, positions: Sequence[int], now: float) -> bool:
        """Return True if further slots of these many positions could all be opened at once."""
        size = sum(map(self._engine.slot_bytes, positions))
        return self._entries.victims(size, len(positions), now) is not None

    def lend(
        self, sessions: Iterable[CloudSession], max_draft_tokens: int, now: float
    ) -> list[CloudSession]:
        """Give out memory, and return the ready sessions that have enough for their next row.

        A row has up to `max_draft_tokens` draft tokens. Must not be called while a batch runs.
        """
        served: list[CloudSession] = []
        requests: dict[int, SlotRequest] = {}
        for session in sessions:
            if not session.ready:
                continue
            positions = needed_positions(session.length, session.state.remaining, max_draft_tokens)
            size = self._engine.slot_bytes(positions)
            if self._has(session, size, now):
                served.append(session)
            else:
                request = self._requests.pop(session.id, None) or SlotRequest(session, now)
                request.session, request.size = session, size
                requests[session.id] = request
        for request in self._requests.values():
            request.stop_waiting()
        self._requests = requests
        served += self._serve(now)
        # A later request may have taken the slot of a session that was served.
        return [session for session in served if session.cache.slot is not None]

    def _has(self, session: CloudSession, size: int, now: float) -> bool:
        """Return True if the session's slot has `size` bytes; note if it has begun to decode."""
        if session.cache.slot is None:
            return False
        entry = self._entries[session.cache.slot]
        if entry.decoding_since is None and session.length > count(entry.tokens):
            entry.decoding_since = now
        return entry.size >= size

    def _serve(self, now: float) -> list[CloudSession]:
        """Grant requests, the oldest first and those of devices that are gone last."""
        served = []
        is_gone = {n: gone(r.session, now, self._policy) for n, r in self._requests.items()}
        order = sorted(self._requests.items(), key=lambda item: (is_gone[item[0]], item[1].since))
        for session_id, request in order:
            patient = now - request.since <= self._policy.patience_s
            request.preempt = not patient and not is_gone[session_id]
            if self._provide(request, now):
                served.append(request.session)
                del self._requests[session_id]
            elif request.preempt and request.awaited is None:
                break  # later requests must not take the memory that this one waits for
        return served

    def leave(self, session: CloudSession, now: float, *, keep: bool = True) -> None:
        """End a session. `keep`: its slot may serve later sessions that share its prefix."""
        slot, cached = session.cache.slot, session.cache.length
        if slot is None:
            return
        session.cache.take()
        if keep:
            self._entries.keep(self._entries[slot], session.state.tokens[:cached], now)
        else:
            self._entries.close(self._entries[slot])

    def _provide(self, request: SlotRequest, now: float) -> bool:
        """Give a session its memory. Return False if it has to wait."""
        slot = request.session.cache.slot
        if slot is not None:
            entry = self._entries[slot]
            if not self._make_room(request, request.size - entry.size, 0, now, entry):
                return False
            entry.size = request.size
            return True
        awaited = request.awaited
        if awaited is not None:
            if awaited.entry.prefilling and awaited.entry.cached < awaited.tokens:
                return False
            request.stop_waiting()
        cached, upcoming = self._entries.shared_prefixes(request.session)
        if upcoming is not None:
            request.wait_for(upcoming)
            return False
        return self._start(request, cached, now)

    def _start(self, request: SlotRequest, prefix: SharedPrefix | None, now: float) -> bool:
        """Give a session its first or another slot, with the shared prefix in it."""
        if prefix is not None and self._should_reuse(prefix, request):
            lent = self._reuse(request, prefix, now)
        else:
            lent = self._open(request, prefix, now)
        if lent is None:
            return False
        session, (slot, size, cached) = request.session, lent
        tokens = packed(session.state.tokens)
        self._entries.add(CacheEntry(slot, size, tokens, session, now, domain=session.domain))
        self.counts.prefix_queries += session.length
        self.counts.prefix_hits += cached
        self.counts.read_again += max(0, session.cache.lost_tokens - cached)
        session.cache.give(slot, cached)
        return True

    def _should_reuse(self, prefix: SharedPrefix, request: SlotRequest) -> bool:
        """Return True if a session should take over a kept entry's slot: it continues all of it, or
        a copy does not fit without evicting the entry or a session."""
        entry = prefix.entry
        if not entry.free:
            return False
        all_of_it = prefix.tokens == entry.cached
        return all_of_it or not self._entries.fits_beside(entry, request.size)

    def _reuse(self, request: SlotRequest, prefix: SharedPrefix, now: float) -> _Lent | None:
        """Take over the slot of a kept entry, cut to the shared prefix."""
        entry = prefix.entry
        if not self._make_room(request, request.size - entry.size, 0, now, entry):
            return None
        self._entries.remove(entry)
        self._engine.truncate(entry.slot, prefix.tokens)
        return _Lent(entry.slot, max(request.size, entry.size), prefix.tokens)

    def _open(self, request: SlotRequest, prefix: SharedPrefix | None, now: float) -> _Lent | None:
        """Open a slot and copy the shared prefix into it."""
        spared = prefix.entry if prefix is not None else None
        if not self._make_room(request, request.size, 1, now, spared):
            return None
        slot = self._engine.open()
        return _Lent(slot, request.size, self._copy(prefix, slot, now) if prefix else 0)

    def _copy(self, prefix: SharedPrefix, slot: int, now: float) -> int:
        """Copy a prefix into a new slot. Return its length, or 0 if a GPU has no memory for the
        copy; the batch then fails too, and reports it."""
        entry = prefix.entry
        if entry.session is None:
            entry.since = now
        try:
            self._engine.copy(entry.slot, slot, 0, prefix.tokens)
        except EngineError as error:
            log.warning("%d tokens are read again: %s", prefix.tokens, error)
            return 0
        return prefix.tokens

    def _make_room(
        self, request: SlotRequest, size: int, slots: int, now: float, spared: CacheEntry | None
    ) -> bool:
        """Evict entries other than `spared` until `size` bytes and `slots` slots are free. Evict
        none and return False if that is not enough."""
        evicted = self._entries.victims(size, slots, now, spared, preempt=request.preempt)
        for entry in evicted or ():
            if entry.session is not None:
                self.counts.evictions += 1
                entry.session.cache.take(evicted=True)
            self._entries.close(entry)
        return evicted is not None
