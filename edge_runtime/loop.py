"""The device's loop: take what has come, draft one step, send. It waits only with nothing to do."""

from __future__ import annotations

import random
import secrets
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

from edge_runtime.answer import Answer
from edge_runtime.deferral import Deferral
from edge_runtime.modes import Modes
from edgespec.config import NO_DRAFTER, EdgeSettings, Request
from edgespec.errors import LinkError
from edgespec.manifest import Bundle
from edgespec.protocol import (
    LONGEST_NAME,
    VERSION,
    Admitted,
    AnyMessage,
    Draft,
    Error,
    Hello,
    Hint,
    Ping,
    Pong,
    Verdict,
    Welcome,
)
from edgespec.text import TextStream
from edgespec.trace import Trace, What
from edgespec.transport import Link
from engines.drafters.base import Drafter

Clock = Callable[[], float]
PACK_SECONDS, PACK_IDS = 0.002, 16
"""Drafted ids wait for company so long, and are sent at once when they are so many."""
PACK_SHARE = 1 / 8
"""Of the target's step they wait at least where many share it: then packets cost, and a step is far
away."""
PING_SECONDS = 1.0
"""How often the round trip is measured, and the cloud told that somebody is there."""
STALL = 1.0
"""Seconds of silence that the report names."""


class Piece(NamedTuple):
    """One committed token."""

    token: int
    text: str
    """What of the answer's text became final with it."""
    accepted: bool
    """Drafted here and accepted, as against written by the target."""


def greet(
    link: Link, hello: Hello, settings: EdgeSettings, clock: Clock = time.monotonic
) -> Welcome:
    """Says hello until the cloud answers. Raises `LinkError` if it refuses or stays silent."""
    end = clock() + settings.connect_timeout
    link.send(hello)
    while (left := end - clock()) > 0:
        for message in link.receive(left):
            if isinstance(message, Welcome):
                return message
            if isinstance(message, Error):
                raise LinkError(
                    f"the cloud at {settings.connect} refused: {message.message}",
                    code=message.code,
                    retryable=message.retryable,
                )
    raise LinkError(
        f"nobody answered at {settings.connect} within {settings.connect_timeout:g} s; "
        "is 'edgespec cloud-run' running there, and with the same keys?",
        retryable=True,
    )


def round_trip(link: Link, settings: EdgeSettings, clock: Clock = time.monotonic) -> float:
    """Seconds of a ping, while nobody has anything else to do; at most the patience."""
    began = clock()
    link.send(Ping(0))
    while 0 <= clock() - began < settings.patience:
        if any(isinstance(m, Pong) for m in link.receive(settings.patience)):
            break
    return max(0.0, clock() - began)


def hello_for(bundle: Bundle, device: str, drafter: str = "", hardware: str = "") -> Hello:
    """Names are cut to what the protocol allows."""
    manifest = bundle.manifest
    who = (name[:LONGEST_NAME] for name in (device, drafter, hardware))
    return Hello(VERSION, manifest.target_fingerprint, manifest.text.fingerprint, *who)


def exit_agreements(bundle: Bundle) -> dict[int, float]:
    """How often each exit head is right, by layer, where it has been measured."""
    segments = bundle.manifest.target.segments
    return {s.end: s.calibration.agreement for s in segments if s.exit and s.calibration}


class EdgeLoop:
    """Writes answers over one link with one drafter."""

    def __init__(
        self,
        link: Link,
        drafter: Drafter,
        hello: Hello,
        welcome: Welcome,
        end_ids: list[int],
        settings: EdgeSettings,
        *,
        exits: Mapping[int, float] | None = None,
        explain: Callable[[str], None] | None = None,
        report: Callable[[str], None] | None = None,
        trace: Trace | None = None,
        clock: Clock = time.monotonic,
    ) -> None:
        """`exits`: how often each exit head is right, by layer. `explain` is told every change of
        mode, and why; `report`, why an answer waits."""
        self._link = link
        self._drafter = drafter
        self._hello = hello
        self.welcome = welcome
        self._end_ids = end_ids
        self._settings = settings
        self._exits = exits or {}
        self._explain = explain
        self._report = report
        self._trace = trace
        self._clock = clock
        self._pings: dict[int, float] = {}
        self.modes = Modes(
            settings, welcome, drafts=drafter.name != NO_DRAFTER, batch=drafter.batch
        )
        self.modes.meter.tripped(round_trip(link, settings, clock))
        self.modes.begin()

    def start(self, request: Request) -> Answer:
        """The state of a new answer. Raises `UsageError` where the prompt does not fit."""
        return Answer(
            secrets.randbits(62), request, self.welcome, self._end_ids, self._settings,
            self.modes.terms, self.modes.meter, self._exits,
        )  # fmt: skip

    def write(
        self, answer: Answer, request: Request, text: TextStream | None = None
    ) -> Iterator[Piece]:
        """Yields tokens as they are committed, until the answer is done; then tells the cloud.

        Raises `LinkError` when the cloud refuses for good, or is silent, full or shut down for
        `give_up` seconds.
        """
        began = self._clock()
        self._silent, self._last_verdict = 0.0, 0.0
        self._unsent_since: float | None = None
        self._read = False
        self._deferral = Deferral(self._settings.give_up, random.Random(answer.session_id))
        up, down = self._link.bytes_up, self._link.bytes_down
        stats = answer.stats
        self._drafter.reset()
        self._say(f"{self.modes.name}: {self.modes.reason}")
        self._ping()  # before the prompt keeps the cloud busy
        self._link.send(answer.open())
        try:
            while not answer.done:
                busy = not self._deferral.waiting and self._draft(answer, request)
                for piece in self._listen(answer, text, busy=busy):
                    stats.tokens += 1
                    if stats.tokens == 1:
                        stats.first_token_seconds = self._clock() - began
                    yield piece
        finally:
            self._link.send(answer.close())
            stats.seconds = self._clock() - began
            stats.bytes_up += self._link.bytes_up - up
            stats.bytes_down += self._link.bytes_down - down
            stats.finish = answer.state.finish
            stats.token_ids = answer.state.answer
            stats.mode = self.modes.name
            self._say(f"{self.modes.name}: at the end; {self.modes.figures}")

    def _draft(self, answer: Answer, request: Request) -> bool:
        """One step of the draft, and what is due to be sent; whether there may be another step."""
        began = self._clock()
        paths = answer.steps()
        if paths:
            texts = [answer.tree.text(path) for path in paths]
            answer.grow(paths, self._drafter.guess(texts, request.sampling))
            now = self._clock()
            answer.stats.drafting_seconds += now - began
            if self._read:  # the first step reads the prompt
                self.modes.meter.drafted(now - began, len(paths))
            self._read = True
            for path in paths if self._trace else ():
                self._note("draft", answer, began, now, round=path.round, base=len(path.ahead))
        pending = answer.pending(idle=not paths)
        if pending:
            since = self._unsent_since = self._unsent_since or began
            if not paths or pending >= PACK_IDS or self._clock() - since >= self._pack:
                self._unsent_since = None
                for packet in answer.packets():
                    self._send(answer, packet)
        return bool(paths)

    @property
    def _pack(self) -> float:
        """Seconds that drafted ids wait for company."""
        shared = PACK_SHARE * self.modes.meter.step if self.modes.shared else 0.0
        return max(PACK_SECONDS, shared)

    def _send(self, answer: Answer, packet: Draft) -> None:
        self._link.send(packet)
        now = self._clock()
        if self._trace:
            self._note(
                "send", answer, now, now, round=packet.round, base=packet.base,
                tokens=len(packet.tokens),
            )  # fmt: skip

    def _listen(self, answer: Answer, text: TextStream | None, *, busy: bool) -> Iterator[Piece]:
        """Takes what has come; with nothing to draft, waits for it."""
        before = self._clock()
        wait = patience = self._settings.patience
        if self._deferral.waiting:
            wait = min(patience, self._deferral.left(before))
        messages = self._link.receive(0.0 if busy else wait)
        now = self._clock()
        waited = min(max(now - before, 0.0), patience)  # whatever the clock does
        if not busy:
            answer.stats.waiting_seconds += waited
            if self._trace:
                self._note("wait", answer, before, now)
        if messages:
            if self._silent + waited >= STALL:
                answer.stats.stalls.append(self._silent + waited)
            self._silent = 0.0
        elif not self._deferral.waiting:
            self._silent += waited
            self._check_silence(answer, busy=busy)
        if now - self._pinged >= min(patience, PING_SECONDS) or now < self._pinged:
            self._ping()
        for message in messages:
            yield from self._take(answer, message, text)
        if self._deferral.waiting and not self._deferral.left(self._clock()):
            self._try_again(answer)
        if messages and self.modes.reconsider():
            self._say(f"{self.modes.name}: {self.modes.reason}")
            self._link.send(answer.serve(self.modes.terms))
            if self._trace:
                self._note("mode", answer, now, now, note=self.modes.name)

    def _check_silence(self, answer: Answer, *, busy: bool) -> None:
        if self._silent >= self._settings.give_up:
            raise LinkError(
                f"{self._settings.connect} has been silent for {self._silent:.0f} s; "
                f"the answer stands at {len(answer.state.answer)} tokens",
                retryable=True,
            )
        if not busy and (resume := answer.resume(silence=True)) is not None:
            self._link.send(resume)

    def _take(
        self, answer: Answer, message: AnyMessage, text: TextStream | None
    ) -> Iterator[Piece]:
        if isinstance(message, Pong):
            left = self._pings.pop(message.nonce, None)
            if left is not None:
                self.modes.meter.tripped(self._clock() - left)
                self.modes.mean_batch_rows = message.mean_batch_rows
        elif isinstance(message, Hint):
            answer.on_hint(message)
        elif isinstance(message, Admitted) and message.session == answer.session_id:
            self._deferral.served()
            if message.wait_ms:
                self._tell(
                    f"the cloud is busy; the answer starts in about {message.wait_ms / 1e3:.1f} s"
                )
        elif isinstance(message, Error):
            self._refused(answer, message)
        elif isinstance(message, Verdict) and answer.missed(message):
            if (resume := answer.resume()) is not None:
                self._link.send(resume)
        elif isinstance(message, Verdict):
            yield from self._verdict(answer, message, text)

    def _refused(self, answer: Answer, error: Error) -> None:
        if answer.deferred(error):
            wait = self._deferral.put_off(error, self._clock())
            self._tell(f"{error.message}; asking again in {wait:.1f} s")
        elif self._deferral.waiting and error.code == "session":
            pass  # about what was sent before
        elif (opening := answer.on_error(error)) is not None:
            if error.code == "hello":  # another server, or the same one started anew
                self._link.send(self._hello)
            self._link.send(opening)

    def _try_again(self, answer: Answer) -> None:
        """Opens from what is committed; another cloud may listen there by now."""
        self._deferral.tried()
        answer.stats.resumed += 1
        self._link.send(self._hello)
        self._link.send(answer.open())

    def _verdict(
        self, answer: Answer, verdict: Verdict, text: TextStream | None
    ) -> Iterator[Piece]:
        accepted, tokens = answer.on_verdict(verdict)
        if verdict.session == answer.session_id:
            self._deferral.served()
        if not tokens:
            answer.stands(verdict)
            return
        pieces = []
        for number, token in enumerate(tokens):
            answer.state.commit([token])
            pieces.append(Piece(token, _words(answer, token, text), number < accepted))
            if answer.done:
                break
        hit = answer.settle()
        now = self._clock()
        since = now - self._last_verdict if self._last_verdict else 0.0
        self.modes.verdict(verdict, len(pieces), since)
        if since and (not verdict.round or self.modes.shared):
            self.modes.meter.stepped(since, max(1, len(tokens) - accepted))
        self._last_verdict = now
        if self._trace:
            self._note(
                "receive", answer, now, now, round=verdict.round, base=verdict.base,
                tokens=len(tokens), note=hit or "",
            )  # fmt: skip
        yield from pieces

    def _ping(self) -> None:
        nonce = secrets.randbits(62)
        self._pinged = self._clock()
        self._pings = {nonce: self._pinged}
        self._link.send(Ping(nonce))

    def _say(self, sentence: str) -> None:
        if self._explain:
            self._explain(sentence)

    def _tell(self, sentence: str) -> None:
        if self._report:
            self._report(sentence)

    def _note(self, what: What, answer: Answer, start: float, end: float, **about: Any) -> None:
        assert self._trace is not None
        self._trace.add(what, start, end, session=answer.session_id, **about)


def _words(answer: Answer, token: int, text: TextStream | None) -> str:
    """The text that a committed token makes final; a stop string in it ends the answer."""
    if text is None:
        return ""
    words = text.push(token)
    if text.stopped:
        answer.state.finish = "stop"
    elif answer.done:
        words += text.flush()
    return words
