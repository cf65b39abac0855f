"""The client behind the API: one link for all requests, made again when it was lost."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from contextlib import suppress

from edge_runtime.client import AsyncClient, Client
from edgespec.errors import EdgespecError, LinkError

RETRY_S = 2.0
"""Time after a failed connection in which requests are refused without another try."""


class Connector:
    """Keeps a client, and opens it again after it has failed."""

    def __init__(self, connect: Callable[[], Client], first: Client | None = None) -> None:
        """`connect` is called in another thread. `first`: a client that is connected already."""
        self._connect = connect
        self._first = first
        self._client: AsyncClient | None = None
        self._lock = asyncio.Lock()
        self._refusal: tuple[float, LinkError] | None = None
        self._attempt: asyncio.Task[None] | None = None

    @property
    def present(self) -> AsyncClient | None:
        """The client, if it is connected to a cloud."""
        client = self._client
        return client if client and client.running else None

    async def client(self) -> AsyncClient:
        """The client, connected. Raises one of edgespec's errors."""
        async with self._lock:
            if self.present:
                return self.present
            if self._refusal and time.monotonic() < self._refusal[0]:
                raise self._refusal[1]
            await self._close()
            first, self._first = self._first, None
            client = AsyncClient(lambda: first or self._connect())
            try:
                await client.__aenter__()
            except LinkError as error:
                self._refusal = time.monotonic() + RETRY_S, error
                raise
            self._client, self._refusal = client, None
            return client

    def try_soon(self) -> None:
        """Starts to connect, if there is no client and no such attempt yet. Returns at once."""
        if not self.present and (self._attempt is None or self._attempt.done()):
            self._attempt = asyncio.create_task(self._try())

    async def _try(self) -> None:
        with suppress(EdgespecError):
            await self.client()

    async def close(self) -> None:
        if self._attempt:
            await self._attempt  # its thread cannot be interrupted
        async with self._lock:
            await self._close()

    async def _close(self) -> None:
        client, self._client = self._client, None
        if client:
            await client.close()
