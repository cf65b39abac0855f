"""What the cloud decides, without a socket, a clock or a model.

`Service` is told what arrived and when, says what to answer, picks the rows of the next batch, and
turns the target's choices into verdicts. Its loop (`cloud_runtime.server`) only carries.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass

import msgspec

from cloud_runtime.admission import LONGEST, AnswerDurations, waiting_time
from cloud_runtime.costs import Speeds
from cloud_runtime.devices import WORDS, ConnectedDevice, Devices, Trouble
from cloud_runtime.memory.ledger import Memory, default_limit, megabytes
from cloud_runtime.scheduler import Batch, DraftStep, Wait, pick
from cloud_runtime.sessions import CloudSession
from cloud_runtime.status.tally import Tally
from cloud_runtime.verifier import hint, verdict
from edgespec.config import CloudSettings
from edgespec.errors import ProtocolError, UsageError
from edgespec.logs import Note
from edgespec.protocol import (
    VERSION,
    Admitted,
    AnyMessage,
    Close,
    Draft,
    Drain,
    Error,
    ErrorCode,
    Hello,
    Message,
    Open,
    Packet,
    Ping,
    Pong,
    Resume,
    Serve,
    Verdict,
    Welcome,
    unpack,
)
from edgespec.sampling import common_prefix
from edgespec.session import Session
from edgespec.transport import Fate
from engines.base import Choices, Engine
from engines.drafters.base import Guess

Outgoing = list[tuple[bytes, Message]]
SMOOTH = 0.1
FINISHED = 256
"""Finished sessions remembered for devices that missed the end."""
WAITING = 0.1
"""Seconds after which to look again whether a session that waits for memory may have it."""
AGAIN_MS = 1000.0
"""After which a device may ask again, where the cloud stops or is full."""


@dataclass(frozen=True)
class Identity:
    """What devices must agree with."""

    target: str
    tokenizer: str
    exits: tuple[int, ...]


class Service:
    """The sessions of one target. `engine` lends slots and is asked for its sizes, never run."""

    def __init__(
        self,
        identity: Identity,
        engine: Engine,
        settings: CloudSettings,
        speeds: Speeds | None = None,
    ) -> None:
        self.speeds = speeds or Speeds()
        self._identity = identity
        self._engine = engine
        self._settings = settings
        self.devices = Devices()
        self.tally = Tally()
        self._notes: list[Note] = []
        self._seats: dict[int, CloudSession] = {}
        self.memory = Memory(engine, settings.kv_memory or default_limit())
        self._pace = AnswerDurations()
        self._leaving: list[CloudSession] = []
        self.draining = False
        self._mean_batch_rows = 0.0
        """Rows of a step, smoothed."""

    @property
    def seats(self) -> list[CloudSession]:
        return list(self._seats.values())

    @property
    def active(self) -> int:
        """Answers in writing or about to be, and those closed while their batch runs."""
        return len(self.unfinished) + len(self._leaving)

    @property
    def unfinished(self) -> list[CloudSession]:
        """Answers in writing, and those that wait to begin."""
        return [seat for seat in self._seats.values() if not seat.state.finish]

    def notes(self) -> list[Note]:
        """What is worth a log line since this was last asked."""
        notes, self._notes = self._notes, []
        return notes

    def receive(self, peer: bytes, packet: Packet, now: float) -> Outgoing:
        """One packet of one peer. Never raises: what cannot be served is answered with an error,
        and what is more than a device may send is dropped before anybody looks at it."""
        device = self.devices.heard(peer, now)
        if not device.budget.take(now):
            self._trouble(device, "flood", now)
            return []
        try:
            message = unpack(packet)
        except ProtocolError as error:
            self._trouble(device, "garbage", now, reason=str(error))
            return [(peer, Error("malformed", str(error)[:1000]))]
        replies = self._handle(device, message, now)
        if replies and device.away:
            self._back(device)  # it is away again if the reply does not leave
        for reply in replies:
            if isinstance(reply, Error):
                self._refused(device, reply, now)
        return [(peer, reply) for reply in replies]

    def lost(self, peer: bytes, fate: Fate, now: float) -> None:
        """A message did not leave. Its device's sessions rest until it asks for something."""
        device = self.devices.get(peer) or ConnectedDevice(peer, now)
        device.away = fate
        sessions = [seat for seat in self._seats.values() if seat.peer == peer]
        for seat in sessions:
            if seat.slot is not None and not seat.idle:
                self._engine.rest(seat.slot)  # the others stay neighbours
            seat.away = True
        going = [seat.session for seat in sessions if not seat.state.finish]
        self._trouble(device, fate, now, quiet=not going, sessions=[f"{s:x}" for s in going])

    def _back(self, device: ConnectedDevice) -> None:
        device.away = None
        for seat in self._seats.values():
            if seat.peer == device.peer:
                seat.away = False

    def _trouble(
        self,
        device: ConnectedDevice,
        kind: Trouble,
        now: float,
        *,
        quiet: bool = False,
        **facts: object,
    ) -> None:
        self.tally.dropped[kind] += 1
        if device.trouble(kind, now, quiet=quiet):
            about = "".join(f"; {name}: {fact}" for name, fact in facts.items() if fact)
            self._note(logging.WARNING, f"{device} {WORDS[kind]}{about}", device, kind, **facts)

    def _note(
        self, level: int, sentence: str, device: ConnectedDevice | None, event: str, **facts: object
    ) -> None:
        who = {"device": device.name, "peer": device.peer.hex()} if device is not None else {}
        self._notes.append(Note(level, sentence, {"event": event, **who, **facts}))

    def _handle(self, device: ConnectedDevice, message: AnyMessage, now: float) -> list[Message]:
        peer = device.peer
        if isinstance(message, Hello):
            return [self._hello(device, message)]
        if isinstance(message, Ping):
            for seat in self._seats.values():
                if seat.peer == peer:
                    seat.heard = now
            return [Pong(message.nonce, self._mean_batch_rows)]
        if not device.greeted:
            return [Error("hello", "say hello first", getattr(message, "session", 0), True)]
        if isinstance(message, Open):
            return self._open(peer, message, now)
        if isinstance(message, Draft | Serve | Resume | Close):
            return self._continue(peer, message, now)
        return [Error("invalid", f"a device does not send {type(message).__name__}")]

    def _hello(self, device: ConnectedDevice, hello: Hello) -> Message:
        device.name = hello.device
        mine = self._identity
        checks: list[tuple[bool, ErrorCode, str]] = [
            (
                hello.version == VERSION,
                "version",
                f"it speaks protocol {VERSION} and the device {hello.version}; "
                "install the same edgespec on both",
            ),
            (
                hello.tokenizer == mine.tokenizer,
                "tokenizer",
                "its tokenizer differs from the device's, so token ids would mean different text; "
                "export both from one target",
            ),
            (
                hello.target == mine.target,
                "bundle",
                "its target differs from the one in the device's bundle; "
                "copy the cloud's bundle to the device",
            ),
        ]
        for fine, code, sentence in checks:
            if not fine:
                return Error(code, sentence)
        fresh = not device.greeted
        self.devices.greet(device, hello)
        if fresh:
            facts = {"drafter": hello.drafter, "hardware": hello.hardware}
            about = "; ".join(f"{name}: {fact}" for name, fact in facts.items() if fact)
            words = f"device {device} is here" + (f" ({about})" if about else "")
            self._note(logging.INFO, words, device, "device", **facts)
        costs, cloud_draft = self.speeds.costs, self.speeds.cloud_draft
        return Welcome(
            version=VERSION,
            target=mine.target,
            tokenizer=mine.tokenizer,
            context=self.memory.context,
            max_draft=self._settings.max_draft,
            exits=list(mine.exits) if self._settings.hints else [],
            step_ms=1e3 * costs.step(1),
            token_ms=1e3 * (costs.step(3) - costs.step(2)),  # shorter rows are padded
            draft_ms=1e3 * cloud_draft.step(1) if cloud_draft is not None else 0.0,
            hint_ms=1e3 * self.speeds.hints,
        )

    def _open(self, peer: bytes, message: Open, now: float) -> list[Message]:
        seat = self._seats.get(message.session)
        if seat is not None:
            shared = common_prefix(message.tokens, seat.state.tokens)
            if shared < min(len(message.tokens), seat.length):
                return [self._invalid(message, "that session is another's")]
            if shared == len(message.tokens):
                seat.terms = message.terms
                return self._standing(seat, peer, shared, now)
            # Opened by a late packet; the device has come further since.
            self._forget(seat, "", now)
        reason = self._unfit(message)
        if reason:
            return [self._invalid(message, reason)]
        if self.draining:
            sentence = "the cloud is shutting down"
            return [Error("busy", sentence, message.session, True, AGAIN_MS)]
        if self.active >= self._settings.max_sessions:
            return [self._later(message, waiting_time(1, self.active, self._pace.seconds))]
        state = Session(
            message.tokens, message.prompt_length, message.max_tokens, frozenset(message.end_ids)
        )
        seat = CloudSession(
            peer, message.session, state, message.sampling, message.terms, None, now, now
        )
        wait = 0.0 if state.finish else self._wait(seat, now)
        if wait > LONGEST:
            return [self._later(message, wait)]
        self._seats[message.session] = seat
        self.tally.opened += 1
        if state.finish:
            return self._standing(seat, peer, len(state.tokens), now)
        return [Admitted(message.session, 1e3 * wait)]

    def _wait(self, seat: CloudSession, now: float) -> float:
        """Seconds until a session that comes now is begun; 0 where its memory is there."""
        waiting = [other for other in self.unfinished if other.slot is None and other.ready]
        if self.memory.fits([*waiting, seat], self._settings.max_draft, now):
            return 0.0
        return waiting_time(len(waiting) + 1, self.active, self._pace.seconds)

    def _later(self, message: Open, wait: float) -> Error:
        milliseconds = max(AGAIN_MS, 1e3 * wait)
        sentence = (
            f"all places are taken by {self.active} sessions; "
            f"try again in {milliseconds / 1e3:.0f} s"
        )
        return Error("busy", sentence, message.session, True, milliseconds)

    def _unfit(self, message: Open) -> str:
        """Why a session cannot be served; empty if it can."""
        try:
            message.sampling.check()
        except UsageError as error:
            return str(error)
        context = self._engine.context
        if not 0 < message.prompt_length <= len(message.tokens):
            return f"a prompt of {message.prompt_length} in {len(message.tokens)} tokens"
        if message.max_tokens < 1 or message.prompt_length + message.max_tokens > context:
            return (
                f"a prompt of {message.prompt_length} and an answer of {message.max_tokens} tokens "
                f"do not fit a context of {context}"
            )
        if message.prompt_length + message.max_tokens > self.memory.context:
            needed = self._engine.slot_bytes(message.prompt_length + message.max_tokens)
            return (
                f"a prompt of {message.prompt_length} and an answer of {message.max_tokens} tokens "
                f"need {megabytes(needed)} of KV cache, and the cloud has "
                f"{megabytes(self.memory.limit)} in all"
            )
        if max(message.tokens) >= self._engine.vocabulary:
            return f"token {max(message.tokens)} of a vocabulary of {self._engine.vocabulary}"
        return ""

    def _continue(
        self, peer: bytes, message: Draft | Serve | Resume | Close, now: float
    ) -> list[Message]:
        seat = self._seats.get(message.session)
        if seat is None:
            if isinstance(message, Close | Serve):
                return []
            return [Error("session", "no such session here", message.session, True)]
        if isinstance(message, Close):
            self._forget(seat, "closed", now)
            return []
        if isinstance(message, Resume):
            return self._standing(seat, peer, message.base, now)
        seat.peer, seat.heard = peer, now
        if isinstance(message, Serve):
            seat.terms = message.terms
            return []
        return self._draft(seat, message, now)

    def _draft(self, seat: CloudSession, draft: Draft, now: float) -> list[Message]:
        vocabulary, ids = self._engine.vocabulary, draft.tokens
        if ids and max(ids) >= vocabulary:
            known = next(place for place, token in enumerate(ids) if token >= vocabulary)
            draft = msgspec.structs.replace(
                draft, tokens=ids[:known], confidences=draft.confidences[:known]
            )
        if draft.confidences and len(draft.confidences) != len(draft.tokens):
            sentence = f"{len(draft.confidences)} probabilities for {len(draft.tokens)} ids"
            return [self._invalid(draft, sentence)]
        path = seat.paths.add(draft)
        seat.arrivals.came(draft, path, now)
        if path is not None and not path.dead and path.end >= seat.length and not seat.asked:
            seat.asked = True
            if seat.terms.lockstep:
                seat.ready_since = now
        return []

    def _standing(self, seat: CloudSession, peer: bytes, base: int, now: float) -> list[Message]:
        """Where a session stands, for a device that lost track: all tokens from `base` on."""
        seat.peer, seat.heard, seat.away = peer, now, False
        tokens = seat.state.tokens
        if base > len(tokens):
            return [Error("session", "the device is ahead of this session", seat.session, True)]
        return [Verdict(seat.session, 0, base, 0, 0, 0, tokens[base:], seat.state.finish)]

    @staticmethod
    def _invalid(message: Open | Draft, reason: str) -> Error:
        return Error("invalid", reason[:1000], message.session)

    def next(self, now: float) -> Batch | DraftStep | Wait:
        """What to run now. Rows are in flight until they are committed or abandoned."""
        served = self.memory.lend(self._seats.values(), self._settings.max_draft, now)
        before = {seat.session for seat in served if seat.idle}
        work = pick(served, self._settings, self.speeds, now)
        for seat in served:
            if seat.idle and seat.session not in before and seat.slot is not None:
                self._engine.rest(seat.slot)  # the others stay neighbours
        if isinstance(work, Wait) and self.memory.waiting:
            return Wait(min(WAITING, WAITING if work.seconds is None else work.seconds))
        return work

    def drafted(self, step: DraftStep, guesses: Sequence[Guess | None]) -> None:
        """What the draft beside the target names for each seat of a step, and how sure it is; None
        where it has nothing to say, and is not asked again."""
        for seat, guess in zip(step.seats, guesses, strict=True):
            if guess is None:
                seat.terms = msgspec.structs.replace(seat.terms, cloud_draft=False)
            else:
                seat.drafted(guess.token, guess.confidence)

    def learn(self, work: Batch | DraftStep, seconds: float) -> None:
        """How long a step took."""
        if isinstance(work, Batch):
            self.tally.step(len(work.rows), sum(len(row.tokens) for row in work.rows), seconds)
            costs = self.speeds.of(work.width)
            exits = self.speeds.hints if any(row.hints for row in work.rows) else 0.0
            costs.learn(len(work.rows), work.width, seconds - exits, work.cached)
            if costs is self.speeds.costs:
                self._mean_batch_rows += SMOOTH * (len(work.rows) - self._mean_batch_rows)
        else:
            self.tally.cloud_draft_steps += 1
            self.tally.cloud_draft_seconds += seconds
        if isinstance(work, DraftStep) and self.speeds.cloud_draft is not None:
            self.speeds.cloud_draft.learn(len(work.seats), work.width, seconds)

    def hints(self, batch: Batch, layer: int, choices: Sequence[Choices | None]) -> Outgoing:
        """What an exit head says about the drafts of a batch."""
        return [
            (seat.peer, hint(seat, layer, choice, self._engine.vocabulary))
            for seat, choice in zip(batch.seats, choices, strict=True)
            if choice is not None and choice.finite
        ]

    def commit(self, batch: Batch, choices: Sequence[Choices | None], now: float) -> Outgoing:
        """Turns the target's choices into committed tokens and verdicts."""
        outgoing: Outgoing = []
        for seat, row, choice in zip(batch.seats, batch.rows, choices, strict=True):
            seat.running = False
            seat.cached = row.start + len(row.tokens)
            seat.ready_since = now
            if choice is not None and not choice.finite:
                error = Error("internal", "the target's logits are not finite", seat.session)
                outgoing.append((seat.peer, error))
                self._forget(seat, "error", now)
            elif choice is not None:
                said = verdict(seat, choice, now)
                self.tally.verdict(seat.record, said, now)
                outgoing.append((seat.peer, said))
                if said.finish:
                    self._ended(seat, said.finish, now)
            if seat.state.finish or self._seats.get(seat.session) is not seat:
                self._free(seat, now)
        return outgoing

    def abandon(self, batch: Batch, reason: str, now: float) -> Outgoing:
        """The target failed on a batch: its sessions end with an error."""
        outgoing: Outgoing = []
        for seat in batch.seats:
            seat.running = False
            self._forget(seat, "error", now)
            outgoing.append((seat.peer, Error("internal", reason[:1000], seat.session)))
        return outgoing

    def expire(self, now: float) -> list[int]:
        """Closes sessions whose device has been silent too long, and forgets finished ones that
        are too many; returns the former."""
        silent = [
            seat
            for seat in self._seats.values()
            if now - seat.heard > self._settings.idle_timeout and not seat.running
        ]
        finished = [seat for seat in self._seats.values() if seat.state.finish]
        for seat in [*silent, *finished[: max(0, len(finished) - FINISHED)]]:
            self._forget(seat, "silent", now)
        return [seat.session for seat in silent]

    def drain(self) -> Outgoing:
        """No new sessions from now on."""
        self.draining = True
        return [(device.peer, Drain()) for device in self.devices]

    def hand_back(self, now: float) -> Outgoing:
        """Answers that are not finished end here; their devices may open them again elsewhere."""
        outgoing: Outgoing = []
        for seat in self.unfinished:
            self._forget(seat, "drained", now)
            sentence = "the cloud has shut down before the answer was finished"
            error = Error("drained", sentence, seat.session, True, AGAIN_MS)
            outgoing.append((seat.peer, error))
        return outgoing

    def _refused(self, device: ConnectedDevice, error: Error, now: float) -> None:
        """A device that is refused is named, since its people will ask why; but for one that only
        has to say hello, or to open its session again."""
        self.tally.refused[error.code] += 1
        if error.code not in ("hello", "session") and device.trouble("refused", now):
            level = logging.INFO if error.retryable else logging.WARNING
            words = f"device {device} is refused ({error.code}): {error.message}"
            self._note(level, words, device, "refused", code=error.code)

    def _ended(self, seat: CloudSession, reason: str, now: float) -> None:
        record, device = seat.record, self.devices.get(seat.peer)
        self.tally.end(record, reason, now)
        self._pace.ended(now - seat.opened_at)
        facts = {
            "session": f"{seat.session:x}",
            "reason": reason,
            "tokens": record.tokens,
            "seconds": round(now - record.opened, 3),
            "verified": record.verified,
            "accepted": record.accepted,
        }
        sentence = (
            f"session {seat.session:x} of {device or 'a device that left'} ended ({reason}): "
            f"{record.tokens} tokens in {now - record.opened:.1f} s, "
            f"{record.accepted} of them drafted there"
        )
        self._note(logging.INFO, sentence, device, "ended", **facts)

    def _forget(self, seat: CloudSession, reason: str, now: float) -> None:
        """`reason` is why it ends, if it was not finished; empty: another takes its place."""
        if reason and not seat.state.finish and self._seats.get(seat.session) is seat:
            self._ended(seat, reason, now)
        if self._seats.get(seat.session) is seat:
            del self._seats[seat.session]
            if seat.running:
                self._leaving.append(seat)
        if not seat.running:
            self._free(seat, now, keep=reason != "error")

    def _free(self, seat: CloudSession, now: float, *, keep: bool = True) -> None:
        """Gives the memory back; a seat in flight has it until its batch has run."""
        self.memory.leave(seat, now, keep=keep)
        self._leaving = [other for other in self._leaving if other is not seat]
