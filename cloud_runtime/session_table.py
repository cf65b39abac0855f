"""The open sessions: opening, drafts, changed terms, resuming and closing."""

from __future__ import annotations

import time
from collections.abc import Collection, Iterator

import msgspec

from cloud_runtime.admission import AnswerDurations, unfit, waiting_time
from cloud_runtime.devices import ConnectedDevice, Devices
from cloud_runtime.events import Events
from cloud_runtime.finished import surplus
from cloud_runtime.memory.ledger import Memory, needed_positions
from cloud_runtime.memory.prefixes import TOKEN_BYTES
from cloud_runtime.quotas import Quotas
from cloud_runtime.session_logprobs import SessionLogprobs
from cloud_runtime.sessions import CloudSession, Connection, Owner
from cloud_runtime.status.tally import Tally
from edgespec.adjustments import adjustments_of
from edgespec.config import CloudSettings
from edgespec.errors import UsageError
from edgespec.grammars import GrammarMask, Grammars, wait_for_any
from edgespec.protocol import Admitted, Close, Draft, Error, Message, Open, Resume, Serve, Verdict
from edgespec.sampling import common_prefix
from edgespec.session import Session
from engines.base import Engine

Outgoing = list[tuple[bytes, Message]]
"""Messages with the peers that they go to."""


class SessionTable:
    """Sessions by id. Packets of devices change them here; steps change them in `stepping`."""

    def __init__(
        self,
        engine: Engine,
        memory: Memory,
        settings: CloudSettings,
        devices: Devices,
        events: Events,
        tally: Tally,
        quotas: Quotas,
        grammars: Grammars | None = None,
    ) -> None:
        """`engine` is asked for its sizes and moves idle slots; it is never run here."""
        self._engine = engine
        self._memory = memory
        self._settings = settings
        self._policy = settings.scheduler
        self._devices = devices
        self._events = events
        self._tally = tally
        self._quotas = quotas
        self._grammars = grammars
        self._sessions: dict[int, CloudSession] = {}
        self._closed_in_flight: list[CloudSession] = []
        """Closed sessions that keep their slots until their batch has run."""
        self._durations = AnswerDurations(self._policy)
        self.draining = False
        """True if no new sessions are admitted."""

    def __iter__(self) -> Iterator[CloudSession]:
        return iter(self._sessions.values())

    def __len__(self) -> int:
        return len(self._sessions)

    def __contains__(self, session: CloudSession) -> bool:
        return self._sessions.get(session.id) is session

    @property
    def unfinished(self) -> list[CloudSession]:
        """Sessions whose answers are being written or wait to begin."""
        return [session for session in self if not session.state.finish]

    @property
    def active(self) -> int:
        """Unfinished sessions, and those closed while their batch runs."""
        return len(self.unfinished) + len(self._closed_in_flight)

    def heard(self, peer: bytes, now: float) -> None:
        """A device sent a ping, which keeps its sessions open."""
        for session in self:
            if session.connection.peer == peer:
                session.connection.heard_at = now

    def away(self, peer: bytes) -> list[CloudSession]:
        """Messages do not reach a device: its sessions rest. Returns those that are unfinished."""
        sessions = [session for session in self if session.connection.peer == peer]
        for session in sessions:
            if session.cache.slot is not None and not session.idle:
                self._engine.rest(session.cache.slot)
            session.connection.away = True
        return [session for session in sessions if not session.state.finish]

    def back(self, peer: bytes) -> None:
        """A device asks for something again: its sessions go on."""
        for session in self:
            if session.connection.peer == peer:
                session.connection.away = False

    def open(self, device: ConnectedDevice, message: Open, now: float) -> Message | None:
        """Opens a session, or resumes the one that is open under this id."""
        session = self._sessions.get(message.session)
        if session is not None:
            if not session.owner.admits(device.key, message.secret):
                return _invalid(message, "that session is another's")
            shared = common_prefix(message.tokens, session.state.tokens)
            if shared < min(len(message.tokens), session.length):
                return _invalid(message, "that session is another's")
            if shared == len(message.tokens):
                session.terms = message.terms
                return self._resume(session, device, shared, now)
            # A late packet opened that session; the device has more tokens by now.
            self.remove(session, "closed", now)
        reason = unfit(message, self._engine, self._memory)
        if reason:
            return _invalid(message, reason)
        if self.draining:
            sentence = "the cloud is shutting down"
            return Error("busy", sentence, message.session, True, self._policy.retry_ms)
        if self.active >= self._settings.max_sessions:
            return self._busy(message, waiting_time(1, self.active, self._durations.mean_s))
        usage = self._quotas.of(device, now)
        if (tokens_wait_s := usage.tokens_wait_s(now)) > 0:
            sentence = f"this device has used its {usage.quota.tokens_per_day} tokens a day"
            return self._busy(message, tokens_wait_s, sentence)
        places = usage.quota.sessions or self._settings.device_places
        if busy := self._busy_with_grammars(device, message):
            return busy
        if (held := self._held_by(device)) >= places:
            sentence = f"this device has {held} unfinished sessions, its share of the cloud"
            return self._busy(message, waiting_time(1, held, self._durations.mean_s), sentence)
        wait_s = self._wait_s(message, now)
        if wait_s > self._policy.longest_wait_s:
            return self._busy(message, wait_s)
        return self._admit(device, message, wait_s, now)

    def _busy_with_grammars(self, device: ConnectedDevice, message: Open) -> Error | None:
        """The refusal of a grammar for which there is no place, in all or for this device."""
        if self._grammars is None or message.grammar is None:
            return None
        holder = device.key or device.peer
        if (wait_s := self._grammars.penalty_s(holder)) > 0:
            return self._busy(message, wait_s, "a grammar of this device took too much time")
        if self._grammars.lacks_place(holder):
            return self._busy(message, self._durations.mean_s, "too many answers have a grammar")
        return None

    def _start_grammar(self, device: ConnectedDevice, message: Open) -> GrammarMask | None:
        """Starts to compile the grammar of a session that has one. Raises `UsageError`."""
        if message.grammar is None:
            return None
        if self._grammars is None:
            raise UsageError("this cloud has no tokenizer for grammars")
        return self._grammars.start(message.grammar, message.end_ids, device.key or device.peer)

    def _admit(
        self,
        device: ConnectedDevice,
        message: Open,
        wait_s: float,
        now: float,
    ) -> Message:
        end_ids = frozenset(message.end_ids)
        state = Session(list(message.tokens), message.prompt_length, message.max_tokens, end_ids)
        if state.finish:  # the device has the whole answer
            return Verdict(message.session, 0, len(state.tokens), 0, 0, 0, [], state.finish)
        try:
            grammar = self._start_grammar(device, message)
        except UsageError as error:
            return _invalid(message, f"{error} (in the cloud)")
        session = CloudSession(
            id=message.session,
            owner=Owner(device.key, message.secret),
            domain=b"" if self._settings.share_prefixes else device.key,
            state=state,
            sampling=message.sampling,
            adjustments=adjustments_of(
                message.sampling,
                state.tokens[: state.prompt_length],
                [] if grammar is None else [grammar],
            ),
            grammar=grammar,
            terms=message.terms,
            logprobs=_logprobs(message),
            connection=Connection(device.peer, now),
            opened_at=now,
            policy=self._policy,
        )
        self._sessions[message.session] = session
        self._tally.opened += 1
        return Admitted(message.session, 1e3 * wait_s)

    def _wait_s(self, message: Open, now: float) -> float:
        """Expected seconds until a new session gets memory; 0: there is some."""
        waiting = [other for other in self.unfinished if other.cache.slot is None and other.ready]
        most = self._settings.max_draft
        length = len(message.tokens)
        remaining = message.prompt_length + message.max_tokens - length
        positions = [
            needed_positions(other.length, other.state.remaining, most) for other in waiting
        ]
        positions.append(needed_positions(length, remaining, most))
        if self._memory.fits(positions, now):
            return 0.0
        return waiting_time(len(waiting) + 1, self.active, self._durations.mean_s)

    def _held_by(self, device: ConnectedDevice) -> int:
        """Number of unfinished sessions of a device's key; without keys, of its connection."""
        return len(self._of(device))

    def _of(self, device: ConnectedDevice) -> list[CloudSession]:
        return [
            session
            for session in self.unfinished
            if (
                session.owner.key == device.key
                if device.key
                else session.connection.peer == device.peer
            )
        ]

    def _busy(self, message: Open, wait_s: float, reason: str = "") -> Error:
        wait_ms = max(self._policy.retry_ms, 1e3 * wait_s)
        reason = reason or f"all places are taken by {self.active} sessions"
        sentence = f"{reason}; try again in {wait_ms / 1e3:.0f} s"
        return Error("busy", sentence, message.session, True, wait_ms)

    def receive(
        self, device: ConnectedDevice, message: Draft | Serve | Resume | Close, now: float
    ) -> Message | None:
        """Handles a message about an open session; returns the reply, if any.

        A session of another device is treated as one that does not exist. A draft carries no
        secret: it counts by the connection that opened or resumed the session last.
        """
        session = self._sessions.get(message.session)
        if session is None or not self._admits(session, device, message):
            if isinstance(message, Close | Serve):
                return None
            return Error("session", "no such session here", message.session, True)
        if isinstance(message, Close):
            self.remove(session, "closed", now)
            return None
        if isinstance(message, Resume):
            return self._resume(session, device, message.base, now)
        session.connection.heard(device.peer, now)
        if isinstance(message, Serve):
            session.terms = message.terms
            return None
        return self._draft(session, message, now)

    def _admits(
        self,
        session: CloudSession,
        device: ConnectedDevice,
        message: Draft | Serve | Resume | Close,
    ) -> bool:
        if isinstance(message, Draft):
            same = device.peer == session.connection.peer
            return same or bool(device.key and device.key == session.owner.key)
        return session.owner.admits(device.key, message.secret)

    def revoke(self, keys: Collection[bytes], now: float) -> None:
        """Closes the sessions of devices whose keys were removed."""
        for session in [session for session in self if session.owner.key in keys]:
            self.remove(session, "revoked", now)

    def _draft(self, session: CloudSession, draft: Draft, now: float) -> Message | None:
        """Adds a draft, cut before the first token that the target's vocabulary lacks."""
        ids, vocabulary = draft.tokens, self._engine.vocabulary
        if ids and max(ids) >= vocabulary:
            known = next(place for place, token in enumerate(ids) if token >= vocabulary)
            draft = msgspec.structs.replace(
                draft, tokens=ids[:known], confidences=draft.confidences[:known]
            )
        if draft.confidences and len(draft.confidences) != len(draft.tokens):
            sentence = f"{len(draft.confidences)} probabilities for {len(draft.tokens)} ids"
            return _invalid(draft, sentence)
        usage = self._quotas.of_owner(session.owner.key, session.connection.peer, now)
        if not usage.take_drafted_ids(len(draft.tokens), now):
            draft = msgspec.structs.replace(draft, tokens=[], confidences=b"")
        session.add_draft(draft, now)
        return None

    def _resume(
        self, session: CloudSession, device: ConnectedDevice, base: int, now: float
    ) -> Message | None:
        """All committed tokens from `base` on, for a device that missed verdicts; None if its
        budget of bytes does not cover them."""
        missing_bytes = TOKEN_BYTES * max(0, session.length - base)
        logprobs = session.logprobs
        records = logprobs.since(base) if logprobs is not None else b""
        if not self._quotas.of(device, now).take_reply(missing_bytes + len(records), now):
            self._events.trouble(device, "flood", now)
            return None
        session.connection = Connection(device.peer, now)
        if base > session.length:
            return Error("session", "the device is ahead of this session", session.id, True)
        tokens, finish = session.state.tokens[base:], session.state.finish
        if logprobs is not None and records and logprobs.tokens(records) < len(tokens):
            tokens, finish = tokens[: logprobs.tokens(records)], ""  # it asks for the rest
        return Verdict(session.id, 0, base, 0, 0, 0, tokens, finish, records)

    def expire(self, now: float) -> list[int]:
        """Closes sessions that their devices have abandoned; returns their ids."""
        timeout_s = self._settings.idle_timeout
        silent = [session for session in self if session.abandoned(now, timeout_s)]
        for session in silent:
            self.remove(session, "silent", now)
        return [session.id for session in silent]

    def refuse_grammars(self, now: float) -> Outgoing:
        """Ends the sessions whose grammars turned out to be invalid."""
        refused = [
            session
            for session in self.unfinished
            if session.grammar is not None and session.grammar.ready and session.grammar.refusal
        ]
        outgoing: Outgoing = []
        for session in refused:
            assert session.grammar is not None
            error = Error("invalid", session.grammar.refusal, session.id)
            self.remove(session, "error", now)
            outgoing.append((session.connection.peer, error))
        return outgoing

    @property
    def unmasked(self) -> list[CloudSession]:
        """Sessions that wait for their grammar or for a mask; asks for what they lack."""
        most = self._settings.max_draft
        return [
            session
            for session in self.unfinished
            if not session.progress.running and not session.prepare_masks(most)
        ]

    def await_masks(self) -> None:
        """Asks for the masks of the next rows, and waits for them a moment."""
        end = time.monotonic() + self._settings.grammars.step_wait_s
        while (left_s := end - time.monotonic()) > 0:
            masks = [session.grammar for session in self.unmasked]
            awaited = [mask for mask in masks if mask is not None and mask.just_asked]
            if not awaited:
                break
            wait_for_any(awaited, left_s)

    def hand_back(self, now: float) -> Outgoing:
        """Ends all unfinished sessions; their devices may open them again on another cloud."""
        outgoing: Outgoing = []
        for session in self.unfinished:
            self.remove(session, "drained", now)
            sentence = "the cloud has shut down before the answer was finished"
            error = Error("drained", sentence, session.id, True, self._policy.retry_ms)
            outgoing.append((session.connection.peer, error))
        return outgoing

    def ended(self, session: CloudSession, reason: str, now: float) -> None:
        """Records the end of an answer, and charges the tokens of its Open and those written.

        A finished session is kept; older ones above the bounds are dropped.
        """
        self._durations.ended(now - session.opened_at)
        usage = self._quotas.of_owner(session.owner.key, session.connection.peer, now)
        usage.spend_tokens(session.length, now)
        device = self._devices.get(session.connection.peer)
        self._events.ended(session, device, reason, now)
        if session.state.finish:
            finished = [session for session in self if session.state.finish]
            for old in surplus(finished, self._policy):
                self._remove(old, now)

    def remove(self, session: CloudSession, reason: str, now: float) -> None:
        """Removes a session; `reason` says why, if its answer was not finished."""
        if not session.state.finish and session in self:
            self.ended(session, reason, now)
        self._remove(session, now, keep=reason != "error")

    def _remove(self, session: CloudSession, now: float, *, keep: bool = True) -> None:
        if session in self:
            del self._sessions[session.id]
            if session.progress.running:
                self._closed_in_flight.append(session)
        if not session.progress.running:
            self.release(session, now, keep=keep)

    def release(self, session: CloudSession, now: float, *, keep: bool = True) -> None:
        """Gives a session's memory back once no batch runs it. `keep`: the cache may be reused."""
        if session.grammar is not None:
            session.grammar.close()
        self._memory.leave(session, now, keep=keep)
        self._closed_in_flight = [s for s in self._closed_in_flight if s is not session]


def _logprobs(message: Open) -> SessionLogprobs | None:
    if message.logprobs is None:
        return None
    return SessionLogprobs(message.logprobs, len(message.tokens))


def _invalid(message: Open | Draft, reason: str) -> Error:
    return Error("invalid", reason, message.session)
