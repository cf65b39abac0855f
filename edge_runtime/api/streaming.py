"""Writing several answers into one HTTP reply, while the client is there and reads.

An answer that nobody waits for any more is cancelled, here and at the cloud.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from functools import partial
from typing import Any

import anyio
from anyio.abc import TaskGroup
from starlette.responses import Response
from starlette.types import Message, Receive, Scope, Send

from edge_runtime.completion import AsyncCompletion
from edge_runtime.pieces import Piece

EVENTS = {"content-type": "text/event-stream; charset=utf-8", "cache-control": "no-cache"}
JSON = {"content-type": "application/json"}
STALLED_S = 60.0
"""Time that a client may take to read what was sent; then its answers are cancelled."""

OnText = Callable[[int, str, Piece | None], Awaitable[None]]
"""Takes the number of an answer, new text of it, and the piece that it came with."""


Work = Callable[[], Awaitable[None]]


class Gone(Exception):
    """The client has disconnected, or reads nothing."""


@asynccontextmanager
async def _together() -> AsyncIterator[
    tuple[TaskGroup, Callable[[Work], Coroutine[Any, Any, None]]]
]:
    """A task group, and a function that awaits work for it: the first failure of such work cancels
    the group and is raised by itself, not in a group of exceptions."""
    failures: list[Exception] = []
    async with anyio.create_task_group() as group:

        async def guarded(work: Work) -> None:
            try:
                await work()
            except Exception as error:  # noqa: BLE001 - raised again, without a group around it
                failures.append(error)
                group.cancel_scope.cancel()

        yield group, guarded
    if failures:
        raise failures[0]


async def read_all(answers: Sequence[AsyncCompletion], on_text: OnText) -> None:
    """Reads answers until all have ended. Raises the first error of any, and cancels the others.

    `on_text` is called for one piece at a time. At the end of an answer it is called without a
    piece if text had been held back.
    """
    turn = anyio.Lock()

    async def read(number: int, answer: AsyncCompletion) -> None:
        shown = 0
        async for piece in answer:
            if piece.correction is not None:
                shown = piece.correction
            shown += len(piece.text)
            async with turn:
                await on_text(number, piece.text, piece)
        if tail := answer.partial_text[shown:]:
            async with turn:
                await on_text(number, tail, None)

    async with _together() as (group, guarded):
        for number, answer in enumerate(answers):
            group.start_soon(guarded, partial(read, number, answer))


class Sender:
    """Sends the chunks of a stream. The status goes with the first of them."""

    def __init__(self, send: Send, headers: Mapping[str, str]) -> None:
        self._send = send
        self._headers = headers
        self.started = False
        self.finished = False
        """True once the last chunk was handed over."""

    async def chunk(
        self,
        data: bytes,
        *,
        more: bool = True,
        status: int = 200,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        """Sends data; status and headers count with the first. Raises `Gone` if the client does not
        read."""
        self.finished = not more
        if not self.started:
            self.started = True
            named = (self._headers if headers is None else headers).items()
            fields = [(name.encode(), value.encode()) for name, value in named]
            await self._within({"type": "http.response.start", "status": status, "headers": fields})
        await self._within({"type": "http.response.body", "body": data, "more_body": more})

    async def _within(self, message: Message) -> None:
        try:
            with anyio.fail_after(STALLED_S):
                await self._send(message)
        except (TimeoutError, OSError) as error:
            raise Gone from error


async def while_connected(receive: Receive, sender: Sender, work: Work) -> None:
    """Awaits `work`, which is cancelled when the client disconnects before the end of the reply.
    Raises `Gone` then."""
    gone = False
    async with _together() as (group, guarded):

        async def watch() -> None:
            nonlocal gone
            while (await receive())["type"] != "http.disconnect":
                pass
            if not sender.finished:
                gone = True
                group.cancel_scope.cancel()

        group.start_soon(watch)
        await guarded(work)
        group.cancel_scope.cancel()
    if gone:
        raise Gone


class Written(Response):
    """A reply that `write` sends by itself."""

    def __init__(self, write: Callable[[Receive, Send], Awaitable[None]]) -> None:
        super().__init__()
        self._write = write

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        del scope
        await self._write(receive, send)


def written(headers: Mapping[str, str], work: Callable[[Sender], Awaitable[None]]) -> Written:
    """A reply that `work` sends while the client is there."""

    async def write(receive: Receive, send: Send) -> None:
        sender = Sender(send, headers)
        with suppress(Gone):
            await while_connected(receive, sender, partial(work, sender))

    return Written(write)
