"""Answers as a program reads them: piece by piece, while they are written."""

from __future__ import annotations

import asyncio
import contextlib
import weakref
from collections.abc import AsyncIterator, Iterator
from queue import SimpleQueue

from edge_runtime.answer import Answer
from edge_runtime.background import BackgroundLoop, Ended
from edge_runtime.pieces import Piece
from edgespec.telemetry import AnswerStats


class _Reading:
    """Base of both kinds of reader. One thread or task reads an answer."""

    def __init__(self, background: BackgroundLoop, answer: Answer) -> None:
        self._background = background
        self._answer = answer
        self._parts: list[str] = []
        self._ended: Ended | None = None
        # An answer without a reader is cancelled.
        self._finalizer = weakref.finalize(self, background.cancel, answer)
        self._finalizer.atexit = False

    @property
    def stats(self) -> AnswerStats:
        """Figures of this answer. They are complete once it has ended."""
        return self._answer.stats

    @property
    def partial_text(self) -> str:
        """The text that has been read so far."""
        return "".join(self._parts)

    def _accept(self, item: Piece | Ended) -> Piece | None:
        """A piece of the answer; None at its end."""
        if isinstance(item, Ended):
            self._ended = item
            self._parts.append(item.tail)
            self._finalizer.detach()
            return None
        if item.correction is not None:
            self._parts = [self.partial_text[: item.correction]]
        self._parts.append(item.text)
        return item

    def _check(self) -> None:
        if self._ended and self._ended.error:
            raise self._ended.error


class _Inbox:
    """The items of one answer that wait for its reader.

    The end is also kept, since a signal handler may raise just after `get` has taken an item out.
    """

    def __init__(self) -> None:
        self._items: SimpleQueue[Piece | Ended] = SimpleQueue()
        self._end: Ended | None = None

    def put(self, item: Piece | Ended) -> None:
        if isinstance(item, Ended):
            self._end = item  # before it can be taken out and lost
        self._items.put(item)

    def get(self) -> Piece | Ended:
        """Waits for the next item. After the last one it returns the end, however often."""
        # The end is set after all pieces were put, so no piece is missing from an empty queue.
        if self._end is not None and self._items.empty():
            return self._end
        return self._items.get()


class Completion(_Reading):
    """An answer that is being written. Iterate over it to read its pieces as they are committed.

    Pieces that are not read wait, at most `max_tokens` of them.
    """

    def __init__(self, background: BackgroundLoop, answer: Answer) -> None:
        super().__init__(background, answer)
        self._inbox = _Inbox()
        background.submit(answer, self._inbox.put)

    def __iter__(self) -> Iterator[Piece]:
        """Yields the pieces that were not read yet. Leaving the iteration early cancels the answer.

        Raises `LinkError` if the cloud refuses, or is silent, full or shut down for too long.
        """
        try:
            while not self._ended:
                piece = self._accept(self._inbox.get())
                if piece:
                    yield piece
            self._check()
        finally:
            self.cancel()

    @property
    def text(self) -> str:
        """The text of the whole answer; of a cancelled answer, the text up to there. Waits for the
        end. Raises as the iteration does."""
        for _ in self:
            pass
        return self.partial_text

    def cancel(self) -> None:
        """Ends the answer here and at the cloud, if it has not ended. Waits until that is done."""
        if not self._ended:
            self._background.cancel(self._answer)
        while not self._ended:
            self._accept(self._inbox.get())


class AsyncCompletion(_Reading):
    """A `Completion` for `async for`. It belongs to the event loop in which it was made."""

    def __init__(self, background: BackgroundLoop, answer: Answer) -> None:
        super().__init__(background, answer)
        inbox: asyncio.Queue[Piece | Ended] = asyncio.Queue()
        events = asyncio.get_running_loop()

        def deliver(item: Piece | Ended) -> None:
            with contextlib.suppress(RuntimeError):  # the event loop is closed
                events.call_soon_threadsafe(inbox.put_nowait, item)

        self._inbox = inbox
        background.submit(answer, deliver)

    async def __aiter__(self) -> AsyncIterator[Piece]:
        """Yields the pieces that were not read yet. Leaving the iteration early, or cancelling the
        task, cancels the answer. Raises as `Completion` does."""
        try:
            while not self._ended:
                piece = self._accept(await self._inbox.get())
                if piece:
                    yield piece
            self._check()
        finally:
            if not self._ended:
                self._background.cancel(self._answer)

    async def text(self) -> str:
        """The text of the whole answer; of a cancelled answer, the text up to there."""
        async for _ in self:
            pass
        return self.partial_text

    async def cancel(self) -> None:
        """Ends the answer here and at the cloud, if it has not ended, and waits until that is
        done."""
        if not self._ended:
            self._background.cancel(self._answer)
        while not self._ended:
            self._accept(await self._inbox.get())
