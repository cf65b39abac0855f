"""Bounds of the API's HTTP connections, in uvicorn's protocol.

uvicorn counts connections only once a request is complete, and closes one that has sent none never.
Here such a connection has a time, and gives way to new ones when there are too many.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import resource
import time
from typing import Any, ClassVar

from uvicorn.protocols.http.h11_impl import H11Protocol

from edge_runtime.api.streaming import STALLED_S
from edgespec.policies import ApiPolicy

log = logging.getLogger("edgespec.serve")

_EXHAUSTED = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)


def bounded_protocol(policy: ApiPolicy) -> type[H11Protocol]:
    """The protocol of a server, with the bounds of a policy and of this process."""
    files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = policy.connections
    if files != resource.RLIM_INFINITY:
        most = max(1, min(most, files - policy.spare_files))
    return type("Protocol", (_BoundedProtocol,), {"policy": policy, "most": most})


class _BoundedProtocol(H11Protocol):
    policy: ClassVar[ApiPolicy]
    most: ClassVar[int]
    """Connections at once."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._idle_since_s = 0.0
        self._idle: asyncio.TimerHandle | None = None
        """Ends the connection unless a request comes."""
        self._unread: asyncio.TimerHandle | None = None
        """Ends the connection unless the client reads."""

    @property
    def _serving(self) -> bool:
        return self.cycle is not None and not self.cycle.response_complete

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._await_request(self.policy.header_s)
        self._make_room()

    def _make_room(self) -> None:
        """Ends the connection that has been without a request for the longest time, if there are
        too many; that is this new one if all others have one."""
        present = [each for each in self.connections if not each.transport.is_closing()]
        if len(present) > self.most:
            idle = [each for each in present if not each._serving]  # type: ignore[union-attr]
            min(idle, key=lambda each: each._idle_since_s).transport.abort()  # type: ignore[union-attr]

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self._serving:
            _stop(self._idle)

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if not self._serving and not self.transport.is_closing():  # no request waits behind
            self._await_request(self.policy.idle_s)

    def _await_request(self, seconds: float) -> None:
        _stop(self._idle)
        self._idle_since_s = self.loop.time()
        self._idle = self.loop.call_later(seconds, self.transport.abort)

    def pause_writing(self) -> None:
        super().pause_writing()
        _stop(self._unread)
        self._unread = self.loop.call_later(STALLED_S, self.transport.abort)

    def resume_writing(self) -> None:
        _stop(self._unread)
        super().resume_writing()

    def connection_lost(self, exc: Exception | None) -> None:
        _stop(self._idle)
        _stop(self._unread)
        super().connection_lost(exc)


def _stop(timer: asyncio.TimerHandle | None) -> None:
    if timer is not None:
        timer.cancel()


class Exhaustion:
    """Handler of an event loop's errors: one line, and not often, when no connection can be taken
    for lack of files or memory."""

    def __init__(self, every_s: float = 60.0) -> None:
        self._every_s = every_s
        self._said_s = float("-inf")

    def __call__(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        error = context.get("exception")
        if not (isinstance(error, OSError) and error.errno in _EXHAUSTED):
            loop.default_exception_handler(context)
        elif time.monotonic() - self._said_s >= self._every_s:
            self._said_s = time.monotonic()
            log.warning("new connections must wait: %s", error.strerror)
