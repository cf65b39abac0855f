"""Who has a slot: a ledger in bytes, and the texts that are kept because others begin with them.

Nothing exceeds the limit. Where there is no room, slots are taken away
(`cloud_runtime.memory.eviction`).
A session that lost its slot is as if it had just been opened with all its committed tokens: its
device notices nothing but the time.

The slot of a session that ends is kept with what it holds. Who begins as another text does, live or
kept, begins with a copy; where that one is still being read, with waiting for it. The one waited
for is referenced and keeps its slot meanwhile.

The engine lends the slots and copies between them; it never runs here.
"""

from __future__ import annotations

import logging
from bisect import bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from cloud_runtime.memory.eviction import PATIENCE, CacheEntry, gone, victims
from cloud_runtime.memory.prefixes import LEAST, Prefixes, count, packed
from cloud_runtime.sessions import CloudSession
from edgespec.errors import EngineError, UsageError
from engines.base import Engine
from engines.machine.system_files import free_bytes
from engines.staged import StagedEngine

log = logging.getLogger("edgespec.cloud")

KEPT = 512
"""Texts kept at most."""


@dataclass(eq=False)
class SlotRequest:
    """What a session without enough memory waits for."""

    since: float
    source: CacheEntry | None = None
    """The text that is being read and that it begins with."""
    shared: int = 0
    """Tokens in common with it."""

    def expect(self, source: CacheEntry, shared: int) -> None:
        source.references += 1
        self.source, self.shared = source, shared

    def drop(self) -> None:
        if self.source is not None:
            self.source.references -= 1
            self.source = None


@dataclass
class MemoryCounts:
    prefix_queries: int = 0
    """Tokens of texts that got a slot."""
    prefix_hits: int = 0
    """Of those, copied."""
    evictions: int = 0
    """Sessions that lost their slot."""
    read_again: int = 0
    """Tokens that were computed again because of that."""


def reach(session: CloudSession, most: int) -> int:
    """Positions that its rows need until its next token, with at most `most` drafted ids."""
    return session.length + max(0, min(most, session.state.remaining - 1))


class Memory:
    def __init__(self, engine: Engine, limit: int) -> None:
        """`limit`: bytes of all slots. Raises `UsageError` where not even one fits."""
        smallest = engine.slot_bytes(1)
        if limit < smallest:
            raise UsageError(
                f"{megabytes(limit)} of KV cache hold no session: the smallest needs "
                f"{megabytes(smallest)}; raise --kv-memory"
            )
        self.limit = limit
        self.counts = MemoryCounts()
        self._engine = engine
        self._texts: dict[int, CacheEntry] = {}
        """By slot."""
        self._prefixes: Prefixes[CacheEntry] = Prefixes()
        self._wants: dict[int, SlotRequest] = {}
        """By session."""

    @property
    def context(self) -> int:
        """Positions that one session may have."""
        sizes = range(1, self._engine.context + 1)
        return bisect_right(sizes, self.limit, key=self._engine.slot_bytes)

    @property
    def session_bytes(self) -> int:
        return sum(text.size for text in self._texts.values() if text.session is not None)

    @property
    def kept_bytes(self) -> int:
        return sum(text.size for text in self._texts.values() if text.session is None)

    @property
    def waiting(self) -> int:
        """Sessions that could run if they had the memory, or what they begin with."""
        return len(self._wants)

    def fits(self, sessions: Sequence[CloudSession], most: int, now: float) -> bool:
        """Whether these, which have no slot yet, could all have one without waiting."""
        size = sum(self._engine.slot_bytes(reach(session, most)) for session in sessions)
        return self._victims(size, len(sessions), now) is not None

    def lend(self, sessions: Iterable[CloudSession], most: int, now: float) -> list[CloudSession]:
        """Of the sessions that are ready, those that have the memory for their next row with up to
        `most` drafted ids, once all that can be given is given. Not while a batch runs."""
        served: list[CloudSession] = []
        wanting: list[tuple[CloudSession, int]] = []
        for session in sessions:
            if not session.ready:
                continue
            need = self._engine.slot_bytes(reach(session, most))
            text = self._texts[session.cache.slot] if session.cache.slot is not None else None
            if text is not None and text.settled is None and session.length > count(text.tokens):
                text.settled = now
            if text is not None and text.size >= need:
                served.append(session)
            else:
                wanting.append((session, need))
        before, self._wants = self._wants, {}
        for session, _ in wanting:
            self._wants[session.id] = before.pop(session.id, SlotRequest(now))
        for want in before.values():
            want.drop()
        wanting.sort(key=lambda item: (gone(item[0], now), self._wants[item[0].id].since))
        for session, need in wanting:
            want = self._wants[session.id]
            pressing = now - want.since > PATIENCE and not gone(session, now)
            if self._provide(session, need, want, now, pressing=pressing):
                served.append(session)
                del self._wants[session.id]
            elif pressing and want.source is None:
                break  # whoever came later does not take what this one waits for
        return [session for session in served if session.cache.slot is not None]

    def leave(self, session: CloudSession, now: float, *, keep: bool = True) -> None:
        """A session is over. What its slot holds is kept until the memory is needed, unless it is
        worth nothing."""
        if session.cache.slot is None:
            return
        text = self._texts[session.cache.slot]
        cached = session.cache.length
        session.cache.take()
        tokens = packed(session.state.tokens[:cached])
        kept = [other for other in self._texts.values() if other.session is None]
        if not keep or cached < LEAST or any(k.tokens.startswith(tokens) for k in kept):
            self._close(text)
            return
        for other in kept:
            if other.free and tokens.startswith(other.tokens):
                self._close(other)
        self._prefixes.remove(text.tokens, text)
        text.session, text.tokens, text.since = None, tokens, now
        text.size = min(text.size, self._engine.slot_bytes(cached))
        self._prefixes.add(tokens, text)
        self._engine.truncate(text.slot, cached)
        self._engine.rest(text.slot)
        free = [other for other in self._texts.values() if other.free]
        if len(free) > KEPT:
            self._close(min(free, key=lambda other: other.since))

    def _provide(
        self, session: CloudSession, need: int, want: SlotRequest, now: float, *, pressing: bool
    ) -> bool:
        """Gives a session its memory, if there is or can be any."""
        if session.cache.slot is not None:
            text = self._texts[session.cache.slot]
            if not self._room(need - text.size, 0, now, text, pressing=pressing):
                return False
            text.size = need
            return True
        if want.source is not None:
            if self._being_read(want.source) and want.source.cached < want.shared:
                return False
            want.drop()
        source, shared = self._source(session, want)
        if want.source is not None:
            return False
        return self._begin(session, need, source, shared, now, pressing=pressing)

    def _source(self, session: CloudSession, want: SlotRequest) -> tuple[CacheEntry | None, int]:
        """The text to begin with, and how much of it; `want` notes one worth waiting for."""
        best, have = None, LEAST - 1
        coming, more = None, 0
        # All but the last token, since something must run.
        for shared, text in self._prefixes.like(packed(session.state.tokens[:-1])):
            if shared <= have:
                break
            if min(shared, text.cached) > have:
                best, have = text, min(shared, text.cached)
            if shared > more and text.cached < shared and self._being_read(text):
                coming, more = text, shared
        if coming is not None and more >= have + LEAST:
            want.expect(coming, more)
        return best, have if best is not None else 0

    def _being_read(self, text: CacheEntry) -> bool:
        """Whether its session is on the way to having all cached that it began with."""
        session = text.session
        return (
            session is not None
            and (session.ready or session.progress.running)
            and session.cache.slot == text.slot
        )

    def _begin(
        self,
        session: CloudSession,
        need: int,
        source: CacheEntry | None,
        shared: int,
        now: float,
        *,
        pressing: bool,
    ) -> bool:
        """Gives a session without a slot one that holds `shared` positions of `source`."""
        if (
            source is not None
            and source.free
            and (shared == source.cached or not self._room_beside(source, need))
        ):  # the text goes on in its own slot
            if not self._room(need - source.size, 0, now, source, pressing=pressing):
                return False
            self._forget(source)
            slot, need = source.slot, max(need, source.size)
            self._engine.truncate(slot, shared)
        else:
            if not self._room(need, 1, now, source, pressing=pressing):
                return False
            slot = self._engine.open()
            if source is not None:
                shared = self._copied(source, slot, shared)
                source.since = now if source.session is None else source.since
        self._texts[slot] = CacheEntry(slot, need, packed(session.state.tokens), session, now)
        self._prefixes.add(self._texts[slot].tokens, self._texts[slot])
        self.counts.prefix_queries += session.length
        self.counts.prefix_hits += shared
        self.counts.read_again += max(0, session.cache.lost_tokens - shared)
        session.cache.give(slot, shared)
        return True

    def _copied(self, source: CacheEntry, slot: int, shared: int) -> int:
        """Positions that a new slot begins with: none where a GPU has no memory for them, which the
        batch finds out, and answers for."""
        try:
            self._engine.copy(source.slot, slot, 0, shared)
        except EngineError as error:
            log.warning("%d tokens are read again: %s", shared, error)
            return 0
        return shared

    def _room_beside(self, source: CacheEntry, need: int) -> bool:
        """Whether there is room without taking `source` or anything from a session."""
        others = sum(text.size for text in self._texts.values() if text is source or not text.free)
        return others + need <= self.limit

    def _victims(
        self,
        size: int,
        slots: int,
        now: float,
        spared: CacheEntry | None = None,
        *,
        pressing: bool = False,
    ) -> list[CacheEntry] | None:
        """Whom to take slots from so that `size` more bytes and so many more slots are free."""
        used = self.session_bytes + self.kept_bytes
        over = len(self._texts) + slots - self._engine.slots
        texts = (text for text in self._texts.values() if text is not spared)
        return victims(texts, used + size - self.limit, over, now, pressing=pressing)

    def _room(
        self, size: int, slots: int, now: float, spared: CacheEntry | None, *, pressing: bool
    ) -> bool:
        """Makes room, if that can be, without touching `spared`."""
        taken = self._victims(size, slots, now, spared, pressing=pressing)
        for text in taken or ():
            if text.session is not None:
                self.counts.evictions += 1
                text.session.cache.take(evicted=True)
            self._close(text)
        return taken is not None

    def _close(self, text: CacheEntry) -> None:
        self._forget(text)
        self._engine.close(text.slot)

    def _forget(self, text: CacheEntry) -> None:
        del self._texts[text.slot]
        self._prefixes.remove(text.tokens, text)


def default_limit(engine: StagedEngine | None = None) -> int:
    """Bytes: a quarter of what is free now; half, where the engine's caches lie in a GPU's memory,
    which also has to hold what is computed with, and a cache's tensor twice while it moves."""
    return engine.free() // 2 if engine and engine.free else free_bytes() // 4


def share_of(memory: int, target: Engine, cloud_draft: Engine | None) -> int:
    """Bytes for the draft beside the target, so that both have room for equally many positions."""
    if cloud_draft is None:
        return 0
    own, others = cloud_draft.slot_bytes(1), target.slot_bytes(1)
    return memory * own // (own + others)


def megabytes(size: int) -> str:
    return f"{size / 1e6:.1f} MB"
