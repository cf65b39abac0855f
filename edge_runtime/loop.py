"""The device's loop: make one draft step, send what is due, handle what has come.

One loop writes any number of answers over one link with one drafter. It waits only when no answer
has anything to draft. It has no thread: call `turn`, or `write`, which calls `turn` for one answer.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Iterator, Sequence

from edge_runtime.answer import Answer, AnswerContext
from edge_runtime.drafting import Drafting
from edge_runtime.figures import DeviceFigures
from edge_runtime.handshake import (
    Clock,
    DeviceIdentity,
    check_admitted,
    greet_if_present,
    round_trip,
)
from edge_runtime.modes import Modes
from edge_runtime.observer import UNOBSERVED, Observer
from edge_runtime.pieces import Piece
from edgespec.config import NO_DRAFTER, EdgeSettings, Request
from edgespec.errors import EdgespecError, LinkError, UsageError
from edgespec.grammars import GrammarMask
from edgespec.protocol import (
    Admitted,
    AnyMessage,
    Error,
    Hint,
    Message,
    Ping,
    Pong,
    Verdict,
    Welcome,
)
from edgespec.text import TextStream
from edgespec.transport import Link
from engines.drafters.base import Drafter


class EdgeLoop:
    """Answers over one link with one drafter. Use `connect` to make one."""

    def __init__(
        self,
        link: Link,
        drafter: Drafter,
        identity: DeviceIdentity,
        welcome: Welcome | None,
        settings: EdgeSettings,
        observer: Observer = UNOBSERVED,
        clock: Clock = time.monotonic,
    ) -> None:
        """`welcome`: the cloud's reply to the Hello; None: no cloud has replied yet, and answers
        begin without one."""
        self._met = welcome is not None
        """True once a cloud has welcomed this device. Nothing but the Hello is sent before."""
        welcome = welcome or identity.expected(settings)
        self.arithmetic = welcome.arithmetic
        """Fingerprint of the arithmetic of the cloud that welcomed this device last."""
        self.modes = Modes(
            settings,
            welcome,
            drafts=drafter.name != NO_DRAFTER,
            batch=drafter.batch,
            acceptance=drafter.acceptance,
        )
        self._link = link
        self._drafter = drafter
        self._hello = identity.hello
        self._context = AnswerContext(
            settings,
            welcome,
            self.modes.measurements.estimate,
            identity.end_ids,
            identity.exit_agreements,
        )
        self._settings = settings
        self._observer = observer
        self._clock = clock
        self._answers: dict[int, Answer] = {}
        """Open answers by session id."""
        self._drafting = Drafting(drafter, self.modes, settings, self._send, observer, clock)
        self._pings: dict[int, float] = {}
        """When the last Ping was sent, by its number."""
        self._connections = link.state.connections
        """Connections of the link when the last Hello was sent."""
        self._pinged = self._listened = clock()
        self._silence = 0.0
        """Seconds that the link has been silent."""
        self._told = False
        """True once the current silence was reported."""

    @classmethod
    def connect(
        cls,
        link: Link,
        drafter: Drafter,
        identity: DeviceIdentity,
        settings: EdgeSettings,
        observer: Observer = UNOBSERVED,
        clock: Clock = time.monotonic,
    ) -> EdgeLoop:
        """A loop over a new link: greets the cloud and measures the round trip.

        With `settings.offline` "draft" the cloud may come later. Raises `LinkError` if it refuses,
        or else does not reply.
        """
        waiting = observer.waiting(settings.connect)
        welcome = greet_if_present(link, identity.hello, settings, clock, waiting)
        loop = cls(link, drafter, identity, welcome, settings, observer, clock)
        if welcome is not None:
            loop.modes.measurements.add_trip(round_trip(link, settings, clock))
            loop.modes.begin()
        return loop

    @property
    def welcome(self) -> Welcome:
        """What the cloud that welcomed this device last says of itself; until then, what the
        bundle says."""
        return self._context.welcome

    @property
    def connected(self) -> bool:
        """True while there is a connection to the cloud, as of the last turn."""
        return self._link.state.connected

    @property
    def figures(self) -> DeviceFigures:
        """Measurements so far. Any thread may ask for them."""
        timings = self.modes.measurements.timings
        return DeviceFigures(
            mode=self.modes.name,
            reason=self.modes.reason,
            answers=len(self._answers),
            round_trip_ms=1e3 * timings.round_trip,
            target_step_ms=1e3 * timings.step,
            draft_step_ms=1e3 * timings.draft,
            agreement=timings.acceptance,
            bytes_up=self._link.bytes_up,
            bytes_down=self._link.bytes_down,
        )

    @property
    def running(self) -> Sequence[Answer]:
        """Answers that are open, those that are over but not closed included."""
        return list(self._answers.values())

    def start(
        self,
        request: Request,
        text: TextStream | None = None,
        grammar: GrammarMask | None = None,
    ) -> Answer:
        """A new answer, not yet opened. Raises `UsageError` if the prompt does not fit."""
        session = secrets.randbits(62)
        return Answer(session, request, self._context, self.modes.terms, text, grammar)

    def write(self, answer: Answer) -> Iterator[Piece]:
        """Opens an answer, yields its pieces as they are committed, and closes it.

        Raises `LinkError` if the cloud refuses for good, or is silent, full or shut down for
        `settings.give_up` seconds.
        """
        self.open(answer)
        try:
            while True:
                while answer.unread:
                    yield answer.unread.popleft()
                if answer.over:
                    break
                self.turn()
            if answer.error:
                raise answer.error
        finally:
            self.close(answer)

    def open(self, answer: Answer) -> None:
        """Sends the answer's session to the cloud; turns go on with it until `close`."""
        timing = answer.timing
        timing.began = self._clock()
        timing.bytes_up, timing.bytes_down = self._link.bytes_up, self._link.bytes_down
        answer.terms = self.modes.terms
        if not self._answers:
            self._silence, self._told, self._listened = 0.0, False, timing.began
        self._answers[answer.session_id] = answer
        self._drafter.retain(self._answers)
        self._observer.explained(f"{self.modes.name}: {self.modes.reason}")
        if self._link.state.connections != self._connections:
            self._introduce()
        self._ping()  # before the prompt keeps the cloud busy
        if not self._met:
            timing.unheard = self._settings.offline_after
        elif not answer.over:  # it is over if all of it was committed before
            self._link.send(answer.open())

    def close(self, answer: Answer) -> None:
        """Ends an answer here and at the cloud, and completes its figures."""
        self._answers.pop(answer.session_id, None)
        if answer.grammar is not None:
            answer.grammar.close()
        self._send(answer.close())
        stats, timing = answer.stats, answer.timing
        stats.seconds = self._clock() - timing.began
        stats.bytes_up += self._link.bytes_up - timing.bytes_up
        stats.bytes_down += self._link.bytes_down - timing.bytes_down
        stats.unverified = len(answer.unverified)
        stats.tokens += stats.unverified
        stats.finish = answer.state.finish or answer.unverified.finish
        stats.token_ids = [*answer.state.answer, *answer.unverified.tokens]
        stats.mode = self.modes.name
        self._observer.explained(f"{self.modes.name}: at the end; {self.modes.figures}")

    def turn(self) -> None:
        """One draft step over all answers that can use it, then the messages that have come.

        Waits for messages, `settings.patience` seconds at most, if there was nothing to draft.
        Committed pieces are in `Answer.unread`; an answer that cannot go on has an `error`.
        """
        self._report_offline()
        busy = self._drafting.turn(self._answers.values())
        before = self._clock()
        timeout = 0.0 if busy else self._timeout(before)
        messages = self._link.receive(timeout)
        now = self._clock()
        waited = min(max(now - before, 0.0), self._settings.patience)  # the clock may jump
        if not busy:
            self._count_wait(before, now, waited)
        self._follow_link()
        self._count_silence(messages, waited)
        self._ask_again(messages, now)
        ping_s = min(self._settings.patience, self._settings.limits.ping_interval_s)
        if not 0 <= now - self._pinged < ping_s:
            self._ping()
        for message in messages:
            self._handle(message)
        for answer in self.running:
            if answer.deferral.waiting and not answer.deferral.left(self._clock()):
                self._try_again(answer)
        if messages and self.modes.reconsider():
            self._change_mode(now)

    # Waiting

    def _report_offline(self) -> None:
        for answer in self._answers.values():
            if answer.offline and not answer.unverified:
                lost = "the cloud is lost" if self._met else f"no cloud at {self._settings.connect}"
                self._observer.reported(f"{lost}; the draft writes on alone, unverified")

    def _timeout(self, now: float) -> float:
        """Seconds to wait for messages: until an answer has to ask, or to be opened, again."""
        patience = self._settings.patience
        ends = [patience]
        for answer in self._answers.values():
            deferral = answer.deferral
            timing = answer.timing
            if answer.compiling or answer.awaits_mask:
                ends.append(self._settings.grammars.poll_s)
            if deferral.waiting:
                ends.append(deferral.left(now))
            else:
                ends.append(patience - timing.silence)
                ends.append(self._settings.give_up - timing.unheard)
                if self._settings.offline == "draft":
                    ends.append(self._settings.offline_after - timing.unheard)
        if self._observer.report and not self._told:
            ends.append(self._settings.limits.stall_s - self._silence)
        return max(0.0, min(ends))

    def _count_wait(self, before: float, now: float, waited: float) -> None:
        for answer in self._answers.values():
            answer.stats.waiting_seconds += waited
            self._observer.note("wait", answer, before, now)

    def _count_silence(self, messages: Sequence[AnyMessage], waited: float) -> None:
        """Measures how long the link has been silent while answers wait for it, and reports it.
        Answers that wait for their next try do not count."""
        waiting = any(not a.deferral.waiting and not a.over for a in self._answers.values())
        if messages:
            if self._silence + waited >= self._settings.limits.stall_s:
                for answer in self._answers.values():
                    answer.stats.stalls.append(self._silence + waited)
            self._silence, self._told = 0.0, False
            return
        if not waiting:
            return
        self._silence += waited
        if self._silence >= self._settings.limits.stall_s and not self._told:
            self._told = True
            self._observer.reported(f"waiting for the cloud at {self._settings.connect} …")

    def _ask_again(self, messages: Sequence[AnyMessage], now: float) -> None:
        """Sends a Resume for each answer that has nothing to draft and has had no message for
        `settings.patience` seconds, and ends those that have had none for `settings.give_up`.

        Only messages that serve an answer count: neither pongs nor errors do.
        """
        elapsed = min(max(now - self._listened, 0.0), self._settings.patience)
        self._listened = now
        heard = {
            message.session
            for message in messages
            if isinstance(message, Admitted | Hint | Verdict)
        }
        for answer in self._answers.values():
            timing = answer.timing
            timing.unheard += elapsed
            if answer.session_id in heard or answer.deferral.waiting:
                timing.unheard = 0.0
            elif timing.unheard >= self._settings.give_up and not (answer.over or answer.offline):
                answer.error = self._unheard(answer)
            if answer.session_id in heard or not timing.idle or answer.deferral.waiting:
                timing.silence = 0.0
                continue
            timing.silence += elapsed
            if timing.silence >= self._settings.patience and not answer.over and self._met:
                timing.silence = 0.0
                if resume := answer.resume(silence=True):
                    self._link.send(resume)

    def _unheard(self, answer: Answer) -> LinkError:
        where, seconds = self._settings.connect, answer.timing.unheard
        silent = (
            "has been silent"
            if not self._link.state.connected or self._silence >= seconds / 2
            else "replies to pings but has said nothing of this answer"
        )
        stands = f"the answer stands at {len(answer.state.answer)} tokens"
        return LinkError(f"{where} {silent} for {seconds:.0f} s; {stands}", retryable=True)

    def _follow_link(self) -> None:
        """Resumes all answers over a new connection, and ends them if the cloud refuses one."""
        if self._link.state.connections != self._connections:
            self._introduce()
            for answer in self._answers.values() if self._met else ():
                if (resume := answer.reconnected()) is not None:
                    self._link.send(resume)
        try:
            check_admitted(self._link, self._settings)
        except LinkError as error:
            for answer in self._answers.values():
                answer.error = answer.error or error

    def _introduce(self) -> None:
        self._connections = self._link.state.connections
        self._link.send(self._hello)

    def _ping(self) -> None:
        number = secrets.randbits(62)
        self._pinged = self._clock()
        self._pings = {number: self._pinged}
        self._send(Ping(number))

    def _send(self, message: Message) -> None:
        """Sends a message if a cloud was met; otherwise it would wait for the first connection."""
        if self._met:
            self._link.send(message)

    def _try_again(self, answer: Answer) -> None:
        """Opens a session from its committed tokens. Another cloud may listen there by now, so
        the device introduces itself again."""
        answer.deferral.tried()
        self._introduce()
        self._open_again(answer)

    def _open_again(self, answer: Answer) -> None:
        try:
            self._link.send(answer.open(self.modes.terms))
        except UsageError as error:  # this cloud's context is smaller
            answer.error = error

    # Messages

    def _handle(self, message: AnyMessage) -> None:
        if isinstance(message, Pong):
            sent = self._pings.pop(message.nonce, None)
            if sent is not None:
                self.modes.measurements.add_trip(self._clock() - sent)
                self.modes.mean_batch_rows = message.mean_batch_rows
            return
        if isinstance(message, Welcome):
            self._welcomed(message)
            return
        session = getattr(message, "session", 0)
        for answer in self.running:
            if session in (0, answer.session_id) and not answer.over:
                self._handle_for(answer, message)

    def _welcomed(self, welcome: Welcome) -> None:
        """Adapts to a cloud that differs from the one before, and opens the answers that began
        without one."""
        before, self.arithmetic = self.arithmetic, welcome.arithmetic
        if before and self.arithmetic and before != self.arithmetic:
            self._observer.reported(
                f"this cloud computes with {self.arithmetic}, the one before with {before}; "
                "where two tokens are almost equally likely, answers may differ"
            )
        if welcome != self.welcome:
            self._context.welcome = welcome
            self.modes.adapt(welcome)
        if not self._met:
            self._met = True
            for answer in self.running:
                if not answer.over:
                    self._open_again(answer)

    def _handle_for(self, answer: Answer, message: AnyMessage) -> None:
        if isinstance(message, Hint):
            answer.on_hint(message)
        elif isinstance(message, Admitted):
            answer.deferral.tried()
            if message.wait_ms:
                wait_s = message.wait_ms / 1e3
                self._observer.reported(
                    f"the cloud is busy; the answer starts in about {wait_s:.1f} s"
                )
        elif isinstance(message, Error):
            try:
                self._refused(answer, message)
            except EdgespecError as error:
                answer.error = error
        elif isinstance(message, Verdict) and answer.missed(message):
            if (resume := answer.resume()) is not None:
                self._link.send(resume)
        elif isinstance(message, Verdict):
            self._on_verdict(answer, message)

    def _refused(self, answer: Answer, error: Error) -> None:
        if answer.deferral.waiting and answer.lost(error):
            pass  # a reply to what was sent before
        elif answer.deferred(error):
            wait_s = answer.deferral.put_off(error, self._clock())
            self._observer.reported(
                f"waiting for the cloud: {error.message}; asking again in {wait_s:.1f} s"
            )
        elif (opening := answer.on_error(error, self.modes.terms)) is not None:
            if error.code == "hello":  # another server, or the same one started anew
                self._link.send(self._hello)
            self._link.send(opening)

    def _on_verdict(self, answer: Answer, verdict: Verdict) -> None:
        news = answer.on_verdict(verdict)
        answer.deferral.tried()
        if not news.tokens:
            answer.stands(verdict)
            return
        answer.deferral.served()
        now = self._clock()
        pieces = answer.commit(news, now)
        hit = answer.settle()
        timing = answer.timing
        since = now - timing.last_verdict if timing.last_verdict else 0.0
        timing.last_verdict = now
        self.modes.verdict(verdict, len(pieces), since)
        if since and (not verdict.round or self.modes.shared):
            own = len(news.tokens) - news.accepted
            self.modes.measurements.add_target_step(since, max(1, own))
        self._observer.note(
            "receive", answer, now, now, round=verdict.round, base=verdict.base,
            tokens=len(news.tokens), note=hit or "",
        )  # fmt: skip

    def _change_mode(self, now: float) -> None:
        self._observer.explained(f"{self.modes.name}: {self.modes.reason}")
        for answer in self._answers.values():
            self._link.send(answer.serve(self.modes.terms))
            self._observer.note("mode", answer, now, now, note=self.modes.name)
