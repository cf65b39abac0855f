"""All KV-cache slots in use: their bytes, the prefixes that they share, and their eviction."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from cloud_runtime.memory.eviction import CacheEntry, victims
from cloud_runtime.memory.prefixes import Prefixes, packed
from cloud_runtime.sessions import CloudSession
from edgespec.policies import EvictionPolicy
from engines.base import Engine


class SharedPrefix(NamedTuple):
    """The first `tokens` tokens of a session, which `entry` has too."""

    entry: CacheEntry
    tokens: int


class SharedPrefixes(NamedTuple):
    cached: SharedPrefix | None
    """The longest prefix that can be copied now."""
    upcoming: SharedPrefix | None
    """A prefix worth waiting for, which another session's prefill will have cached."""


class CacheEntries:
    """The slots in use, by slot number. Closes slots of the engine; never runs it."""

    def __init__(self, engine: Engine, limit: int, policy: EvictionPolicy) -> None:
        """`limit`: bytes of all slots together."""
        self._engine = engine
        self._limit = limit
        self._policy = policy
        self._entries: dict[int, CacheEntry] = {}
        self._prefixes: dict[bytes, Prefixes[CacheEntry]] = {}
        """Prefixes by domain. Entries of one domain are never compared with tokens of another."""

    def __len__(self) -> int:
        return len(self._entries)

    def __getitem__(self, slot: int) -> CacheEntry:
        return self._entries[slot]

    @property
    def session_bytes(self) -> int:
        """Bytes of the slots of open sessions."""
        return sum(e.size for e in self._entries.values() if e.session is not None)

    @property
    def kept_bytes(self) -> int:
        """Bytes of the slots of ended sessions."""
        return sum(e.size for e in self._entries.values() if e.session is None)

    def add(self, entry: CacheEntry) -> None:
        self._entries[entry.slot] = entry
        prefixes = self._prefixes.get(entry.domain)
        if prefixes is None:
            prefixes = Prefixes(self._policy.least_shared_tokens)
            self._prefixes[entry.domain] = prefixes
        prefixes.add(entry.tokens, entry)

    def remove(self, entry: CacheEntry) -> None:
        """Remove an entry; its slot stays open."""
        del self._entries[entry.slot]
        prefixes = self._prefixes[entry.domain]
        prefixes.remove(entry.tokens, entry)
        if not len(prefixes):
            del self._prefixes[entry.domain]

    def close(self, entry: CacheEntry) -> None:
        """Remove an entry and close its slot."""
        self.remove(entry)
        self._engine.close(entry.slot)

    def keep(self, entry: CacheEntry, tokens: Sequence[int], now: float) -> None:
        """Keep the slot of an ended session, which holds `tokens`, until the memory is needed.

        It is closed instead if it is too short to be shared, or if another kept entry begins with
        the same tokens.
        """
        sequence = packed(tokens)
        kept = [
            other
            for other in self._entries.values()
            if other.session is None and other.domain == entry.domain
        ]
        short = len(tokens) < self._policy.least_shared_tokens
        if short or any(other.tokens.startswith(sequence) for other in kept):
            self.close(entry)
            return
        for other in kept:
            if other.free and sequence.startswith(other.tokens):
                self.close(other)
        self.remove(entry)
        entry.session, entry.tokens, entry.since = None, sequence, now
        entry.size = min(entry.size, self._engine.slot_bytes(len(tokens)))
        self.add(entry)
        self._engine.truncate(entry.slot, len(tokens))
        self._engine.rest(entry.slot)
        free = [other for other in self._entries.values() if other.free]
        if len(free) > self._policy.kept_entries:
            self.close(min(free, key=lambda other: other.since))

    def shared_prefixes(self, session: CloudSession) -> SharedPrefixes:
        """Return the prefixes that a session without a slot should copy or wait for.

        The session's last token is left out, since a row needs at least one token.
        """
        least = self._policy.least_shared_tokens
        cached = upcoming = None
        cached_tokens, upcoming_tokens = least - 1, 0
        prefixes = self._prefixes.get(session.domain)
        sequence = packed(session.state.tokens[:-1])
        for shared, entry in prefixes.like(sequence) if prefixes is not None else ():
            if shared <= cached_tokens:
                break
            if min(shared, entry.cached) > cached_tokens:
                cached_tokens = min(shared, entry.cached)
                cached = SharedPrefix(entry, cached_tokens)
            if shared > upcoming_tokens and entry.cached < shared and entry.prefilling:
                upcoming_tokens = shared
                upcoming = SharedPrefix(entry, shared)
        worth_waiting = upcoming_tokens >= cached_tokens + least
        return SharedPrefixes(cached, upcoming if worth_waiting else None)

    def fits_beside(self, entry: CacheEntry, size: int) -> bool:
        """Return True if `size` more bytes fit without evicting the entry or any session."""
        others = sum(e.size for e in self._entries.values() if e is entry or not e.free)
        return others + size <= self._limit

    def victims(
        self,
        size: int,
        slots: int,
        now: float,
        spared: CacheEntry | None = None,
        *,
        preempt: bool = False,
    ) -> list[CacheEntry] | None:
        """Return the entries to evict for `size` more bytes and `slots` more slots; None if they
        are not enough. `spared` is not evicted."""
        missing = self.session_bytes + self.kept_bytes + size - self._limit
        missing_slots = len(self._entries) + slots - self._engine.slots
        entries = (entry for entry in self._entries.values() if entry is not spared)
        return victims(entries, missing, missing_slots, now, self._policy, preempt=preempt)
