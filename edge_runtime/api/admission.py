"""Admission of requests: so many answers are written at once, so many requests wait in order."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Protocol

import anyio
import msgspec

from edge_runtime.api import errors
from edge_runtime.api.errors import ApiError
from edge_runtime.api.metrics import Metrics
from edge_runtime.api.streaming import EVENTS, JSON, Sender, Written, written
from edge_runtime.client import AsyncClient
from edge_runtime.completion import AsyncCompletion
from edgespec.config import Request
from edgespec.errors import EdgespecError

Write = Callable[[Sender, Sequence[AsyncCompletion]], Awaitable[None]]
"""Sends what answers become, and raises if one of them fails."""


class Failing(Protocol):
    """A reply that can end in the middle of its stream."""

    def failed(self, error: ApiError) -> bytes:
        """The last bytes of the stream."""


class Admission:
    """The places for answers."""

    def __init__(self, places: int, queue: int, metrics: Metrics) -> None:
        """`queue`: requests that may wait for places."""
        self._places = anyio.Semaphore(places)
        self._turn = anyio.Lock()
        """Held while a request takes its places, so that two do not wait for each other's."""
        self._queue = queue
        self._waiting = 0
        self._metrics = metrics

    def reply(
        self, client: AsyncClient, wanted: Sequence[Request], write: Write, reply: Failing,
        *, stream: bool,
    ) -> Written:  # fmt: skip
        """The reply that `write` sends once there are places. Raises `ApiError` if too many wait
        for one."""
        if self._waiting >= self._queue:
            raise ApiError(
                429, f"{self._waiting} requests wait already; try again later",
                errors.OVERLOADED, code="queue_full",
            )  # fmt: skip

        async def work(sender: Sender) -> None:
            try:
                await self._placed(client, wanted, sender, write)
            except (EdgespecError, ApiError) as failure:
                error = failure if isinstance(failure, ApiError) else errors.of(failure)
                await _report(error, sender, reply)

        return written(EVENTS if stream else JSON, work)

    async def _placed(
        self, client: AsyncClient, wanted: Sequence[Request], sender: Sender, write: Write
    ) -> None:
        """Waits for places and writes the answers."""
        taken = 0
        try:
            self._waiting += 1
            try:
                async with self._turn:
                    for _ in wanted:
                        await self._places.acquire()
                        taken += 1
            finally:
                self._waiting -= 1
            answers = [client.start(each) for each in wanted]
            with self._metrics.running(answers):
                await write(sender, answers)
        finally:
            for _ in range(taken):
                self._places.release()


async def _report(error: ApiError, sender: Sender, reply: Failing) -> None:
    """Tells the client of an error, in the stream if it has begun."""
    if sender.started:
        await sender.chunk(reply.failed(error), more=False)
    else:
        body, headers = msgspec.json.encode(error.body()), {**JSON, **error.headers()}
        await sender.chunk(body, more=False, status=error.status, headers=headers)
