"""Bounds on what a peer can make the cloud's socket hold before the cloud has read it.

ZeroMQ bounds the size of a frame (MAXMSGSIZE) and the number of complete messages that wait
(RCVHWM). It bounds neither the frames of one message nor the bytes of those that wait, and it
collects them before any code of ours runs. `ConnectionGuard` therefore compares, for each TCP
connection, what the kernel has received with what the cloud has taken out of the socket, and ends
a connection whose backlog exceeds its bound. It looks at no content, so CurveZMQ does not matter.

In the other direction ZeroMQ bounds the messages that wait for a peer (SNDHWM), not their bytes.
The guard compares the bytes sent with those that the peer's machine has acknowledged.

It also ends connections whose peer has vanished, since ZeroMQ must not find out by itself
(`edgespec.tcp`). Where the kernel does not count (other systems than Linux), connections are capped
in number and time only.
"""

from __future__ import annotations

import contextlib
import logging
import math
import resource
import threading
import time
from dataclasses import dataclass

import zmq
from zmq.utils.monitor import parse_monitor_message

from edgespec import tcp
from edgespec.policies import LinkLimits

log = logging.getLogger("edgespec.cloud")

_HANDSHAKE_BYTES = 2048
"""Largest ZMTP handshake, with CurveZMQ."""
_HEARTBEAT_BYTES_PER_S = 64
"""Pings and pongs of a peer that sends heartbeats; edgespec's devices do not."""
_LATEST_BYTES = 65_536
"""What a connection may have sent, at a guess, since the guard last looked at it."""
_SAY_S = 1.0
"""Time between two log lines about connections that were cut."""
_HELD = "no connections are taken until what closed ones have left is read"
_TAKEN = "connections are taken again"
_RESERVED_FILES_COUNT = 128
"""File descriptors kept for models, logs, the status server and ZeroMQ itself."""


@dataclass
class _Connection:
    accepted_s: float
    """Monotonic time of the accept."""
    address: str
    taken_bytes: int = 0
    """Bytes of its messages that the cloud has taken out of the socket."""
    ended: bool = False
    """True once the cloud has ended it; ZeroMQ closes it when it has read to the end."""
    greeted: bool = False
    """True once the cloud has taken a valid Hello from it."""
    owner: bytes = b""
    """CURVE key (Z85) of a greeted connection; empty where links are not encrypted."""
    sent_bytes: int = 0
    """Bytes of messages for it that ZeroMQ has accepted, raised to what the peer has taken."""
    acknowledged_bytes: int = 0
    """Bytes that the peer's machine had taken at the last look."""
    waiting_bytes: float = 0.0
    """Bytes received and not yet taken, at the last look."""

    @property
    def unread_bytes(self) -> int:
        """Bytes that ZeroMQ and the kernel hold for the peer, at most."""
        return self.sent_bytes - self.acknowledged_bytes

    def look(self, file: int) -> None:
        """Updates the acknowledged bytes. Handshake and heartbeats are among them, so they may
        exceed the sent ones, which then count as acknowledged."""
        counts = tcp.counts(file)
        self.acknowledged_bytes = counts.acknowledged_bytes if counts else 0
        self.sent_bytes = max(self.sent_bytes, self.acknowledged_bytes)

    def backlog_bytes(self, received_bytes: int, now: float) -> float:
        """Bytes received and not yet taken, without what handshake and heartbeats may have been."""
        allowed = _HANDSHAKE_BYTES + _HEARTBEAT_BYTES_PER_S * (now - self.accepted_s)
        return received_bytes - self.taken_bytes - allowed


class ConnectionGuard:
    """Watches the connections of one bound socket from a thread of its own."""

    def __init__(self, bound: zmq.Socket[bytes], limits: LinkLimits, packet_bytes: int) -> None:
        """`packet_bytes`: the largest packet that a peer may send."""
        self._limits = limits
        self._backlog_bytes = limits.backlog_bytes + packet_bytes
        self._capacity = max(1, min(limits.connections, _file_limit() - _RESERVED_FILES_COUNT))
        self._connections: dict[int, _Connection] = {}
        self._lock = threading.Lock()
        self.read_s = 0.0
        """Monotonic time at which the cloud last read the socket; it does not while it loads."""
        self.accepted_count = 0
        """Connections accepted so far."""
        self.cut_count = 0
        """Connections shut down so far."""
        self._left_bytes = 0.0
        """Bytes, at most, that closed connections have left in the socket."""
        self._listening: int | None = None
        """Descriptor of the listening socket."""
        self._holding = False
        """True while no connections are taken, since too much of closed ones waits."""
        self._said_s = -math.inf
        """Monotonic time at which the log was last told of a cut."""
        self._unsaid = 0
        events = zmq.EVENT_LISTENING | zmq.EVENT_ACCEPTED | zmq.EVENT_DISCONNECTED
        self._monitor = bound.get_monitor_socket(events)
        self._bound = bound
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="connection guard", daemon=True)
        self._thread.start()

    def took(self, file: int, size: int) -> None:
        """Counts `size` bytes, framing included, taken from the connection with descriptor `file`.

        The connection may be newer than the monitor's last event: its record is made here then.
        """
        connection = self._connections.get(file)
        if connection is None:
            with self._lock:
                connection = self._register(file)
        connection.taken_bytes += size

    def greeted(self, file: int, owner: bytes = b"") -> None:
        """The message just taken was a valid Hello: from now on its packets may be large.

        `owner`: key of the device. One that has too many connections loses its oldest.
        """
        with self._lock:
            connection = self._register(file)
            connection.greeted, connection.owner = True, owner
            if owner:
                same = [f for f, c in self._connections.items() if c.owner == owner and not c.ended]
                if len(same) > self._limits.connections_per_key:
                    self._shut(same[0], "its device has too many connections")

    def takes(self, file: int, size: int) -> bool:
        """True if a connection may be sent `size` more bytes; False if its peer does not read.

        A connection without unread bytes may be sent a packet of any size.
        """
        connection = self._connections.get(file)
        if connection is None:
            return True
        share = self._limits.total_unread_bytes // max(1, len(self._connections))
        bound = min(self._limits.unread_bytes, share)
        if connection.unread_bytes + size > bound // 2:
            with self._lock:
                connection = self._register(file)
            connection.look(file)
        unread = connection.unread_bytes
        return not unread or unread + size <= bound or not connection.acknowledged_bytes

    def sent(self, file: int, size: int) -> None:
        """Counts `size` bytes, framing included, that ZeroMQ has accepted for a connection."""
        connection = self._connections.get(file)
        if connection is not None:
            connection.sent_bytes += size

    def cut(self, file: int, reason: str) -> None:
        """Ends a connection; `reason` goes to the log."""
        with self._lock:
            self._shut(file, reason)

    def emptied(self) -> None:
        """The socket had no packet left."""
        self._left_bytes = 0.0

    def close(self) -> None:
        """Stops watching. The connections, which are about to be closed, heed resets again: the
        kernel keeps a closed one until its peer replies, or for minutes."""
        self._stopping.set()
        self._thread.join()
        for file, connection in self._connections.items():
            if tcp.address(file) == connection.address:
                tcp.heed_resets(file)
        self._bound.disable_monitor()
        self._monitor.close()

    def _run(self) -> None:
        due = time.monotonic()
        while not self._stopping.is_set():
            if self._monitor.poll(max(0, math.ceil(1e3 * (due - time.monotonic())))):
                self._follow()
            if (now := time.monotonic()) >= due:
                self._check(now)
                end = time.monotonic()
                rest_s = (end - now) / self._limits.guard_cpu_share
                due = end + max(self._limits.guard_interval_s, rest_s)

    def _follow(self) -> None:
        """Reads the monitor's events until there are none."""
        with contextlib.suppress(zmq.Again):
            while True:
                event = parse_monitor_message(self._monitor.recv_multipart(zmq.NOBLOCK))
                file = int(event["value"])
                with self._lock:
                    if event["event"] == zmq.EVENT_LISTENING:
                        self._listening = file
                        tcp.ignore_resets(file)
                    elif event["event"] == zmq.EVENT_DISCONNECTED:
                        self._forget(file)
                    else:
                        self.accepted_count += 1
                        self._register(file)
                        self._keep_to_capacity()

    def _register(self, file: int) -> _Connection:
        """The record of the connection that has this descriptor now; a new one if it is new.

        A connection that is closed already gets a record that is not kept: its descriptor may be
        given to anything next.
        """
        connection = self._connections.get(file)
        address = tcp.address(file)
        if connection is None or connection.address != address:
            if connection is not None:
                self._leave(connection)
            connection = _Connection(time.monotonic(), address)
            if address:
                self._connections[file] = connection
                tcp.ignore_resets(file)  # it may have come before the listening socket did so
        return connection

    def _forget(self, file: int) -> None:
        """Drops the record of a closed connection, unless a new one has its descriptor already."""
        connection = self._connections.get(file)
        if connection is not None and connection.address != tcp.address(file):
            del self._connections[file]
            self._leave(connection)

    def _leave(self, connection: _Connection) -> None:
        """Counts what a closed connection may have left to be read."""
        most = _LATEST_BYTES if connection.greeted else self._limits.hello_bytes
        self._left_bytes += max(0.0, connection.waiting_bytes) + most

    def _keep_to_capacity(self) -> None:
        """Ends the oldest connection without a Hello if there are too many, or the newest one."""
        if len(self._connections) > self._capacity:
            every = self._connections.items()
            strangers = (file for file, c in every if not (c.greeted or c.ended))
            file = next(strangers, next(reversed(self._connections)))
            self._shut(file, f"the cloud takes {self._capacity} connections")

    def _check(self, now: float) -> None:
        with self._lock:
            backlogs: dict[int, float] = {}
            for file, connection in list(self._connections.items()):
                counts = tcp.counts(file)
                if connection.ended or counts is None:
                    self._forget(file)  # the event of its end may come before its end
                if connection.ended:
                    continue
                backlog = connection.backlog_bytes(counts.received_bytes, now) if counts else 0.0
                backlogs[file] = connection.waiting_bytes = backlog
                bound = self._backlog_bytes if connection.greeted else self._limits.hello_bytes
                late = self.read_s - connection.accepted_s > self._limits.hello_timeout_s
                if backlog > bound:
                    self._shut(file, f"{backlog:.0f} bytes wait, {bound} are allowed")
                elif late and not connection.greeted:
                    self._shut(file, "it sent no Hello in time")
                elif counts and counts.silent_s > self._limits.vanished_s:
                    self._shut(file, "its machine does not answer")
            while sum(backlogs.values()) > self._limits.total_backlog_bytes:
                file = max(backlogs, key=backlogs.__getitem__)
                del backlogs[file]
                self._shut(file, "too many bytes wait in all")
            self._hold(self._left_bytes > self._limits.total_left_bytes)

    def _hold(self, on: bool) -> None:
        """Takes no connections while the cloud has too much to read of closed ones."""
        if on != self._holding and self._listening is not None:
            self._holding = on
            tcp.hold(self._listening, on)
            log.info("%s", _HELD if on else _TAKEN)

    def _shut(self, file: int, reason: str) -> None:
        """Ends the connection; ZeroMQ then notices, closes it and frees what it holds."""
        connection = self._connections.get(file)
        if connection is None or connection.ended:
            return
        if tcp.address(file) != connection.address:
            self._forget(file)  # closed meanwhile; the number may belong to another one
            return
        connection.ended = True
        self.cut_count += 1
        self._say(connection, reason)
        tcp.end(file)

    def _say(self, connection: _Connection, reason: str) -> None:
        """Logs the end of a connection; many in a second are counted in one line."""
        now = time.monotonic()
        if now - self._said_s < _SAY_S:
            self._unsaid += 1
            return
        more = f" ({self._unsaid} more since the last line)" if self._unsaid else ""
        log.info("the connection from %s is cut: %s%s", connection.address, reason, more)
        self._said_s, self._unsaid = now, 0


def _file_limit() -> int:
    """File descriptors that this process may have open."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return soft if soft != resource.RLIM_INFINITY else 1 << 20
