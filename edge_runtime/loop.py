"""The device's loop: draft, send, wait, commit. In lock-step: the wait is idle."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Iterator
from typing import NamedTuple

from edge_runtime.answer import Answer
from edge_runtime.drafters import Drafter
from edgespec.config import EdgeSettings, Request
from edgespec.errors import LinkError
from edgespec.manifest import Bundle
from edgespec.protocol import (
    VERSION,
    AnyMessage,
    Error,
    Hello,
    Hint,
    Ping,
    Verdict,
    Welcome,
)
from edgespec.text import TextStream
from edgespec.transport import Link

Clock = Callable[[], float]


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


def hello_for(bundle: Bundle, device: str) -> Hello:
    manifest = bundle.manifest
    return Hello(VERSION, manifest.target_fingerprint, manifest.text.fingerprint, device)


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
        drafting: bool = True,
        clock: Clock = time.monotonic,
    ) -> None:
        self._link = link
        self._drafter = drafter
        self._hello = hello
        self._welcome = welcome
        self._end_ids = end_ids
        self._settings = settings
        self._drafting = drafting
        self._clock = clock

    def start(self, request: Request) -> Answer:
        """The state of a new answer. Raises `UsageError` where the prompt does not fit."""
        return Answer(
            secrets.randbits(62), request, self._welcome, self._end_ids, drafting=self._drafting
        )

    def write(
        self, answer: Answer, request: Request, text: TextStream | None = None
    ) -> Iterator[Piece]:
        """Yields tokens as they are committed, until the answer is done; then tells the cloud.

        Raises `LinkError` when the cloud refuses, or is silent for `give_up` seconds.
        """
        began = heard = spoke = self._clock()
        up, down = self._link.bytes_up, self._link.bytes_down
        stats = answer.stats
        self._drafter.reset()
        self._link.send(answer.open())
        try:
            while not answer.done:
                if answer.may_draft:
                    self._draft(answer, request)
                    spoke = self._clock()
                before = self._clock()
                messages = self._link.receive(self._settings.patience)
                now = self._clock()
                stats.waiting_seconds += now - before
                if now - spoke >= self._settings.patience:
                    self._link.send(Ping(0))  # one that only reads would seem gone
                    spoke = now
                if messages:
                    heard = now
                elif now - heard >= self._settings.give_up:
                    raise LinkError(
                        f"{self._settings.connect} has been silent for {now - heard:.0f} s; "
                        f"the answer stands at {len(answer.state.answer)} tokens",
                        retryable=True,
                    )
                else:
                    self._link.send(answer.resume())
                for message in messages:
                    for piece in self._take(answer, message, text):
                        stats.tokens += 1
                        if stats.tokens == 1:
                            stats.first_token_seconds = now - began
                        yield piece
        finally:
            self._link.send(answer.close())
            stats.seconds = self._clock() - began
            stats.bytes_up += self._link.bytes_up - up
            stats.bytes_down += self._link.bytes_down - down
            stats.finish = answer.state.finish
            stats.token_ids = answer.state.answer

    def _draft(self, answer: Answer, request: Request) -> None:
        before = self._clock()
        count = min(answer.wanted(self._settings.draft_length), self._welcome.max_draft)
        drafted = self._drafter.draft(answer.state.tokens, count, request.sampling) if count else []
        answer.stats.drafting_seconds += self._clock() - before
        self._link.send(answer.draft(drafted))

    def _take(
        self, answer: Answer, message: AnyMessage, text: TextStream | None
    ) -> Iterator[Piece]:
        if isinstance(message, Hint):
            answer.on_hint(message)
        elif isinstance(message, Error):
            if (opening := answer.on_error(message)) is not None:
                if message.code == "hello":  # another server, or the same one started anew
                    self._link.send(self._hello)
                self._link.send(opening)
        elif isinstance(message, Verdict) and answer.missed(message):
            self._link.send(answer.resume())
        elif isinstance(message, Verdict):
            accepted, tokens = answer.on_verdict(message)
            if not tokens and (again := answer.repeat(message)) is not None:
                self._link.send(again)
            for number, token in enumerate(tokens):
                if answer.done:
                    return
                answer.state.commit([token])
                yield Piece(token, _words(answer, token, text), number < accepted)


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
