"""A device's link whose `receive` another thread can interrupt."""

from __future__ import annotations

import contextlib
import socket

import zmq

from edgespec.config import EdgeSettings
from edgespec.protocol import AnyMessage
from edgespec.transport import DealerLink


class WakeableLink(DealerLink):
    """A `DealerLink` with `wake`, the only method that any thread may call."""

    def __init__(self, settings: EdgeSettings) -> None:
        self._waking, self._woken = socket.socketpair()
        self._waking.setblocking(False)
        self._woken.setblocking(False)
        try:
            super().__init__(
                settings.connect, settings.server_key, key=settings.key, limits=settings.limits
            )
        except BaseException:
            self._close_pair()
            raise
        self._poller.register(self._woken, zmq.POLLIN)

    def wake(self) -> None:
        """Ends the current `receive`, or the next one at once."""
        with contextlib.suppress(OSError):  # the buffer is full, so it wakes anyway; or closed
            self._waking.send(b"\0")

    def receive(self, timeout: float) -> list[AnyMessage]:
        messages = super().receive(timeout)
        with contextlib.suppress(BlockingIOError):
            self._woken.recv(4096)
        return messages

    def close(self) -> None:
        super().close()
        self._close_pair()

    def _close_pair(self) -> None:
        self._waking.close()
        self._woken.close()
