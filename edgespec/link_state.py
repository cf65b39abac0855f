"""State of a device's connection, from the events of its ZeroMQ socket."""

from __future__ import annotations

import contextlib
import struct
from dataclasses import dataclass

import zmq

_EVENTS = zmq.EVENT_HANDSHAKE_SUCCEEDED | zmq.EVENT_HANDSHAKE_FAILED_AUTH | zmq.EVENT_DISCONNECTED
_REFUSED = 400
"""Status code of a key that is not admitted (ZeroMQ RFC 27)."""


@dataclass
class LinkState:
    connections: int = 0
    """Connections that were established so far. The cloud sees each as a new peer."""
    connected: bool = False
    refused: bool = False
    """True if the cloud did not admit the device's key in the last handshake."""


def established() -> LinkState:
    """The state of a link inside one process, which is never cut."""
    return LinkState(1, connected=True)


class LinkMonitor:
    """Keeps a `LinkState` up to date. Poll `socket` to be woken by a change."""

    def __init__(self, watched: zmq.Socket[bytes]) -> None:
        self.state = LinkState()
        self._watched = watched
        self.socket = watched.get_monitor_socket(_EVENTS)

    def update(self) -> None:
        """Reads the events that have come."""
        with contextlib.suppress(zmq.Again):
            while True:
                event, value = struct.unpack("=Hi", self.socket.recv_multipart(zmq.NOBLOCK)[0])
                self._apply(event, value)

    def _apply(self, event: int, value: int) -> None:
        state = self.state
        state.connected = event == zmq.EVENT_HANDSHAKE_SUCCEEDED
        if state.connected:
            state.connections += 1
            state.refused = False
        elif event == zmq.EVENT_HANDSHAKE_FAILED_AUTH and value == _REFUSED:
            state.refused = True

    def close(self) -> None:
        if not self._watched.closed:
            self._watched.disable_monitor()
        self.socket.close()
