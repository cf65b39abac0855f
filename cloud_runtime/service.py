"""What the cloud decides, without a socket, a clock or a model.

`Service` is told what arrived and when, says what to answer, picks the rows of the next batch, and
turns the target's choices into verdicts. Its loop (`cloud_runtime.server`) only carries.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import msgspec

from cloud_runtime.costs import StepCosts
from cloud_runtime.scheduler import Batch, DraftStep, Wait, pick
from cloud_runtime.seats import Seat
from cloud_runtime.verifier import hint, verdict
from edgespec.config import CloudSettings
from edgespec.errors import ProtocolError, UsageError
from edgespec.protocol import (
    VERSION,
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
from engines.base import Choices, Engine

Outgoing = list[tuple[bytes, Message]]
PEERS = 4096
"""Connections remembered; one that was forgotten is asked to say hello again."""
FINISHED = 256
"""Finished sessions remembered for devices that missed the end."""


@dataclass(frozen=True)
class Identity:
    """What devices must agree with."""

    target: str
    tokenizer: str
    exits: tuple[int, ...]


@dataclass
class Speeds:
    """Measured times, in seconds; they follow the machine while it runs."""

    costs: StepCosts = field(default_factory=StepCosts)
    beside: float = 0.0
    """A step of the draft beside the target; 0: there is none."""
    beside_alone: float = 0.0
    """The same when the cloud started. What is not drafted is not measured either, so a slow
    measurement is believed less with every step of the target."""
    hints: float = 0.0
    """What exit heads add to a step."""


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
        self._peers: dict[bytes, str] = {}
        self._seats: dict[int, Seat] = {}
        self._slots = 0
        self.draining = False

    @property
    def seats(self) -> list[Seat]:
        return list(self._seats.values())

    @property
    def active(self) -> int:
        """Sessions with a slot: answers in writing, and those closed while their batch runs."""
        return self._slots

    def receive(self, peer: bytes, packet: Packet, now: float) -> Outgoing:
        """One packet of one peer. Never raises: what cannot be served is answered with an error."""
        try:
            message = unpack(packet)
            return [(peer, reply) for reply in self._handle(peer, message, now)]
        except ProtocolError as error:
            return [(peer, Error("malformed", str(error)[:1000]))]

    def _handle(self, peer: bytes, message: AnyMessage, now: float) -> list[Message]:
        if isinstance(message, Hello):
            return [self._hello(peer, message)]
        if isinstance(message, Ping):
            for seat in self._seats.values():
                if seat.peer == peer:
                    seat.heard = now
            return [Pong(message.nonce)]
        if peer not in self._peers:
            return [Error("hello", "say hello first", getattr(message, "session", 0), True)]
        if isinstance(message, Open):
            return self._open(peer, message, now)
        if isinstance(message, Draft | Serve | Resume | Close):
            return self._continue(peer, message, now)
        return [Error("invalid", f"a device does not send {type(message).__name__}")]

    def _hello(self, peer: bytes, hello: Hello) -> Message:
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
        self._peers[peer] = hello.device
        costs = self.speeds.costs
        if len(self._peers) > PEERS:
            del self._peers[next(iter(self._peers))]
        return Welcome(
            version=VERSION,
            target=mine.target,
            tokenizer=mine.tokenizer,
            context=self._engine.context,
            max_draft=self._settings.max_draft,
            exits=list(mine.exits) if self._settings.hints else [],
            step_ms=1e3 * costs.step(1),
            token_ms=1e3 * (costs.step(2) - costs.step(1)),
            draft_ms=1e3 * self.speeds.beside,
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
            self._forget(seat)  # opened by a late packet; the device has come further since
        reason = self._unfit(message)
        if reason:
            return [self._invalid(message, reason)]
        if self.draining:
            return [Error("busy", "the cloud is shutting down", message.session, True)]
        if self.active >= self._settings.max_sessions:
            sentence = f"all {self._settings.max_sessions} sessions are taken; try again later"
            return [Error("busy", sentence, message.session, True)]
        state = Session(
            message.tokens, message.prompt_length, message.max_tokens, frozenset(message.end_ids)
        )
        seat = Seat(peer, message.session, state, message.sampling, message.terms, None, now, now)
        if not state.finish:
            seat.slot = self._engine.open()
            self._slots += 1
        self._seats[message.session] = seat
        return [] if seat.slot is not None else self._standing(seat, peer, len(state.tokens), now)

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
            self._forget(seat)
            return []
        if isinstance(message, Resume):
            return self._standing(seat, peer, message.base, now)
        seat.peer, seat.heard = peer, now
        if isinstance(message, Serve):
            seat.terms = message.terms
            return []
        return self._draft(seat, message, now)

    def _draft(self, seat: Seat, draft: Draft, now: float) -> list[Message]:
        known = next(
            (place for place, token in enumerate(draft.tokens) if token >= self._engine.vocabulary),
            len(draft.tokens),
        )
        draft = msgspec.structs.replace(
            draft, tokens=draft.tokens[:known], sures=draft.sures[:known]
        )
        if len(draft.sures) not in (0, known):
            return [self._invalid(draft, f"{len(draft.sures)} probabilities for {known} ids")]
        path = seat.paths.add(draft)
        seat.rhythm.came(draft, path, now)
        if path is not None and not path.dead and path.end >= seat.length and not seat.asked:
            seat.asked = True
            if not seat.terms.decoding:
                seat.ready_since = now
        return []

    def _standing(self, seat: Seat, peer: bytes, base: int, now: float) -> list[Message]:
        """Where a session stands, for a device that lost track: all tokens from `base` on."""
        seat.peer, seat.heard = peer, now
        tokens = seat.state.tokens
        if base > len(tokens):
            return [Error("session", "the device is ahead of this session", seat.session, True)]
        return [Verdict(seat.session, 0, base, 0, 0, 0, tokens[base:], seat.state.finish)]

    @staticmethod
    def _invalid(message: Open | Draft, reason: str) -> Error:
        return Error("invalid", reason[:1000], message.session)

    def next(self, now: float) -> Batch | DraftStep | Wait:
        """What to run now. Rows are in flight until they are committed or abandoned."""
        speeds = self.speeds
        return pick(self._seats.values(), self._settings, speeds.costs, speeds.beside, now)

    def drafted(self, step: DraftStep, guesses: Sequence[tuple[int, float] | None]) -> None:
        """What the draft beside the target names for each seat of a step, and how sure it is; None
        where it has nothing to say, and is not asked again."""
        for seat, guess in zip(step.seats, guesses, strict=True):
            if guess is None:
                seat.terms = msgspec.structs.replace(seat.terms, beside=False)
            else:
                seat.drafted(*guess)

    def learn(self, work: Batch | DraftStep, seconds: float) -> None:
        """How long a step took. Long rows (prompts) say nothing about verifying."""
        if isinstance(work, DraftStep):
            one = seconds / len(work.seats)  # the first of a session reads its text: not all counts
            self.speeds.beside += 0.1 * (min(one, 2 * self.speeds.beside) - self.speeds.beside)
            return
        self.speeds.beside += 0.02 * (self.speeds.beside_alone - self.speeds.beside)
        if all(len(row.tokens) <= 1 + self._settings.max_draft for row in work.rows):
            self.speeds.costs.learn(len(work.rows), work.tokens, seconds)

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
            if choice is not None and not choice.finite:
                error = Error("internal", "the target's logits are not finite", seat.session)
                outgoing.append((seat.peer, error))
                self._forget(seat)
            elif choice is not None:
                outgoing.append((seat.peer, verdict(seat, choice, now)))
            if seat.state.finish or self._seats.get(seat.session) is not seat:
                self._free(seat)
        return outgoing

    def abandon(self, batch: Batch, reason: str) -> Outgoing:
        """The target failed on a batch: its sessions end with an error."""
        outgoing: Outgoing = []
        for seat in batch.seats:
            seat.running = False
            self._forget(seat)
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
        finished = [seat for seat in self._seats.values() if seat.slot is None]
        for seat in [*silent, *finished[: max(0, len(finished) - FINISHED)]]:
            self._forget(seat)
        return [seat.session for seat in silent]

    def drain(self) -> Outgoing:
        """No new sessions from now on."""
        self.draining = True
        return [(peer, Drain()) for peer in self._peers]

    def _forget(self, seat: Seat) -> None:
        if self._seats.get(seat.session) is seat:
            del self._seats[seat.session]
        if not seat.running:
            self._free(seat)

    def _free(self, seat: Seat) -> None:
        """Gives the slot back; a seat in flight keeps it until its batch has run."""
        if seat.slot is not None:
            self._engine.close(seat.slot)
            self._slots -= 1
            seat.slot = None
