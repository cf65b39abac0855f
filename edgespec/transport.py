"""ZeroMQ under the protocol: DEALER on the device, ROUTER in the cloud, CurveZMQ beyond loopback.

The loops take a `Link` or a `Hub`, so that tests can pass one that stays inside the process.
"""

from __future__ import annotations

import contextlib
import ipaddress
import logging
import math
import time
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Protocol
from urllib.parse import urlsplit

import zmq

from edgespec import tcp
from edgespec.connections import ConnectionGuard
from edgespec.errors import LinkError, UsageError
from edgespec.keys import ClientFolder, read_pair, read_public
from edgespec.link_state import LinkMonitor, LinkState
from edgespec.peers import Peer, Peers, router_socket
from edgespec.policies import LinkLimits
from edgespec.protocol import (
    MAX_FRAMES,
    MAX_PACKET,
    AnyMessage,
    Error,
    Message,
    Packet,
    Welcome,
    pack,
    unpack,
)

if TYPE_CHECKING:
    from zmq.auth.thread import ThreadAuthenticator

_FRAME_BYTES, _CURVE_FRAME_BYTES = 9, 42
"""Most bytes that ZMTP adds to a frame, plain and with CurveZMQ (nonce, MAC, command name)."""

_MOST_PROBES = 127
"""Most probes that Linux sends to a silent connection before it closes it."""

Fate = Literal["gone", "unread"]
"""Why a packet was not sent: the connection is closed, or too much waits for it already."""


class Link(Protocol):
    """The device's end of a connection."""

    bytes_up: int
    bytes_down: int

    @property
    def state(self) -> LinkState:
        """State of the connection, as of the last `receive`."""

    def send(self, message: Message) -> None: ...

    def receive(self, timeout: float) -> list[AnyMessage]:
        """Messages that have arrived, after waiting at most `timeout` seconds for the first.

        A change of `state` ends the wait too.
        """


class Hub(Protocol):
    """The cloud's end of all connections. A peer is the opaque name of one connection."""

    def send(self, peer: bytes, message: Message) -> Fate | None:
        """Sends without waiting. Returns None, or why the message could not be sent."""

    def owner(self, peer: bytes) -> bytes:
        """The CURVE key (Z85) of a peer's connection; empty where links are not encrypted."""
        del peer
        return b""

    def take_revoked(self) -> set[bytes]:
        """Keys of devices that may no longer connect, since the last call."""
        return set()

    def receive(self, timeout: float) -> list[tuple[bytes, Packet]]:
        """Packets that have arrived, not decoded, after waiting at most `timeout` seconds."""


def is_loopback(endpoint: str) -> bool:
    """Return whether only this machine can reach an endpoint. Raises `UsageError`."""
    try:
        parts = urlsplit(endpoint)
        host = parts.hostname or ""
        if parts.scheme in ("ipc", "inproc"):
            return True
        port = endpoint.rpartition(":")[2]
        if parts.scheme != "tcp" or not host or not (port == "*" or 0 <= int(port) < 65536):
            raise ValueError
    except ValueError:
        raise UsageError(
            f"{endpoint!r} is no endpoint; write tcp://HOST:PORT, as in tcp://127.0.0.1:5555"
        ) from None
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


class DealerLink:
    """Connection to a cloud. ZeroMQ reconnects by itself; the loop then asks for lost messages.

    Packets sent while it is cut are dropped; those sent before the first connection wait for it.
    """

    def __init__(
        self,
        endpoint: str,
        server_key: Path | None = None,
        context: zmq.Context[zmq.Socket[bytes]] | None = None,
        *,
        key: Path | None = None,
        limits: LinkLimits = LinkLimits(),
    ) -> None:
        """`server_key` is the file of the cloud's public key. `key` is the file of this device's
        secret key, for clouds that admit known devices only; without it a new key is made.
        `context` may be shared by several links; closing a link does not close it.

        Raises `UsageError` for a bad endpoint or key, and `LinkError` if ZeroMQ refuses it.
        """
        if not is_loopback(endpoint) and server_key is None:
            raise UsageError(
                f"{endpoint} is not on this machine, so the link must be encrypted: pass "
                "--server-key with the key file that 'edgespec keygen' wrote for the cloud"
            )
        if key is not None and server_key is None:
            raise UsageError("a device's key needs the cloud's public key too; pass --server-key")
        cloud_key = read_public(server_key) if server_key else b""
        pair = read_pair(key) if key else zmq.curve_keypair() if cloud_key else (b"", b"")
        self._shared = context is not None
        self._context = context or zmq.Context()
        self._socket = self._context.socket(zmq.DEALER)
        self._limits = limits
        self._monitor = LinkMonitor(self._socket)
        self._socket.setsockopt(zmq.RECONNECT_IVL, _ms(limits.shortest_reconnect_s))
        self._socket.setsockopt(zmq.RECONNECT_IVL_MAX, _ms(limits.longest_reconnect_s))
        self._socket.setsockopt(zmq.CONNECT_TIMEOUT, _ms(limits.connect_attempt_s))
        self._socket.setsockopt(zmq.SNDHWM, limits.device_queue_packets)
        _bound(self._socket, limits)
        _probe(self._socket, limits, limits.vanished_s)
        self._socket.setsockopt(zmq.IPV6, "[" in endpoint)
        self.bytes_up = self.bytes_down = 0
        try:
            if cloud_key:
                self._socket.curve_publickey, self._socket.curve_secretkey = pair
                self._socket.curve_serverkey = cloud_key
            self._socket.connect(endpoint)
        except zmq.ZMQError as error:
            DealerLink.close(self)
            raise LinkError(f"cannot connect to {endpoint}: {error.strerror}") from error
        self._poller = zmq.Poller()
        self._poller.register(self._socket, zmq.POLLIN)
        self._poller.register(self._monitor.socket, zmq.POLLIN)

    @property
    def state(self) -> LinkState:
        return self._monitor.state

    def send(self, message: Message) -> None:
        """Never waits: a packet that finds no connection or a full queue is lost, like others."""
        state = self.state
        if state.connections and not state.connected:
            return
        packet = pack(message)
        with contextlib.suppress(zmq.Again):
            self._socket.send_multipart(packet, zmq.NOBLOCK, copy=True)
            self.bytes_up += sum(map(len, packet))

    def receive(self, timeout: float) -> list[AnyMessage]:
        messages: list[AnyMessage] = []
        end, connected_before = time.monotonic() + timeout, self.state.connections
        self._poller.poll(_ms(timeout))
        self._monitor.update()
        if self.state.connections and not connected_before:  # what was sent has waited for it
            self._poller.poll(_ms(end - time.monotonic()))
        with contextlib.suppress(zmq.Again):
            for _ in range(self._limits.poll_total_packets):
                packet = self._socket.recv_multipart(zmq.NOBLOCK)
                self.bytes_down += sum(map(len, packet))
                messages.append(unpack(packet))
        return messages

    def close(self) -> None:
        self._monitor.close()
        self._socket.close()
        if not self._shared:
            self._context.term()


class RouterHub(Hub):
    """Listening socket of a cloud."""

    def __init__(
        self,
        endpoint: str,
        secret_key: Path | None = None,
        *,
        clients: Path | None = None,
        packet_bytes: int = MAX_PACKET,
        limits: LinkLimits = LinkLimits(),
    ) -> None:
        """`secret_key` is the file of the cloud's secret key, which encrypts links. `clients` is a
        folder with the public keys of the devices that may connect; None admits any.
        `packet_bytes` is the size of the largest packet that a device may send.

        Raises `UsageError` for a bad endpoint or key, and `LinkError` if it cannot listen there.
        """
        if not is_loopback(endpoint) and secret_key is None:
            raise UsageError(
                f"{endpoint} can be reached from other machines, so the link must be encrypted: "
                "make keys with 'edgespec keygen' and pass --key"
            )
        if clients is not None and secret_key is None:
            raise UsageError("devices are known by keys, so the cloud needs one too; pass --key")
        keys = read_pair(secret_key) if secret_key else None
        self._clients = ClientFolder(clients) if clients else None
        self._context = zmq.Context()
        self._socket, self._names = router_socket(self._context)
        self._limits = limits
        self._socket.setsockopt(zmq.ROUTER_MANDATORY, 1)
        self._socket.setsockopt(zmq.SNDHWM, limits.send_queue_packets)
        self._socket.setsockopt(zmq.RCVHWM, limits.receive_queue_packets)
        _bound(self._socket, limits, packet_bytes)
        _probe(self._socket, limits, 0 if tcp.COUNTED else limits.vanished_s)  # the guard closes
        self._socket.setsockopt(zmq.HANDSHAKE_IVL, _ms(limits.hello_timeout_s))
        self._socket.setsockopt(zmq.IPV6, "[" in endpoint)
        self._guard: ConnectionGuard | None = None
        self._authenticator = _authenticator(self._context, self._clients) if keys else None
        self._peers = Peers(limits.connections)
        self._frame_bytes = _CURVE_FRAME_BYTES if keys is not None else _FRAME_BYTES
        try:
            if keys is not None:
                self._socket.curve_publickey, self._socket.curve_secretkey = keys
                self._socket.curve_server = True
            self._guard = ConnectionGuard(self._socket, limits, packet_bytes)
            self._bind(endpoint)
        except (OSError, zmq.ZMQError) as error:
            self.close()
            reason = (
                "another program is listening there; choose another port"
                if error.errno == zmq.EADDRINUSE
                else error.strerror
            )
            raise LinkError(f"cannot listen on {endpoint}: {reason}") from error
        self.endpoint = self._socket.getsockopt_string(zmq.LAST_ENDPOINT)

    def _bind(self, endpoint: str) -> None:
        """Binds to an endpoint; where it is an IP address, with a socket that was made before, so
        that no connection comes before its filter. Raises `OSError`."""
        host, port = _address(endpoint)
        if tcp.COUNTED and host:
            with tcp.listen(host, port, self._limits.listen_backlog) as listening:
                self._socket.setsockopt(zmq.USE_FD, listening.fileno())
                self._socket.bind(endpoint)
                listening.detach()
        else:
            self._socket.setsockopt(zmq.BACKLOG, self._limits.listen_backlog)
            self._socket.bind(endpoint)

    def send(self, peer: bytes, message: Message) -> Fate | None:
        found, guard = self._peers.get(peer), self._guard
        if found is None or guard is None:
            return "gone"
        packet = pack(message)
        size = sum(len(frame) + self._frame_bytes for frame in packet)
        if not guard.takes(found.file, size):
            return "unread"
        try:
            self._socket.send_multipart([found.name, *packet], zmq.NOBLOCK, copy=True)
        except zmq.Again:
            return "unread"
        except zmq.ZMQError as error:
            if error.errno != zmq.EHOSTUNREACH:
                raise
            return "gone"
        guard.sent(found.file, size)
        if isinstance(message, Welcome):
            guard.greeted(found.file, found.owner)
        return None

    def receive(self, timeout: float) -> list[tuple[bytes, Packet]]:
        packets: list[tuple[bytes, Packet]] = []
        taken: Counter[bytes] = Counter()
        if self._guard is not None:
            self._guard.read_s = time.monotonic()
        try:
            if not _readable(self._socket, timeout):
                raise zmq.Again
            end = time.monotonic() + self._limits.poll_s
            for _ in range(self._limits.poll_total_packets):
                peer, packet = self._take()
                if packet:
                    packets.append((peer, packet))
                taken[peer] += 1
                if taken[peer] >= self._limits.poll_packets or time.monotonic() >= end:
                    break
        except zmq.Again:
            if self._guard is not None:
                self._guard.emptied()
        return packets

    def _take(self) -> tuple[bytes, Packet]:
        """The next packet and its peer; frames beyond `MAX_FRAMES` are dropped with the connection.

        ZeroMQ holds a message whole before it gives the first frame, so all are taken.
        The packet is empty if the peer must not be served, or speaks a ZMTP older than 3, whose
        connections ZeroMQ does not name. Raises `zmq.Again` if no packet waits.
        """
        name = self._socket.recv(zmq.NOBLOCK, copy=False)
        file = _descriptor(name)
        packet: Packet = []
        size = 0
        while len(packet) <= MAX_FRAMES and self._socket.getsockopt(zmq.RCVMORE):
            frame = self._socket.recv(zmq.NOBLOCK)
            size += len(frame) + self._frame_bytes
            packet.append(frame)
        more = bool(self._socket.getsockopt(zmq.RCVMORE))
        while more:  # many empty frames: this way takes half the time
            rest = self._socket.recv(zmq.NOBLOCK, copy=False)
            size += len(rest) + self._frame_bytes
            more = rest.more
        if file is None or self._guard is None:
            return b"", []
        owner = str(name.get("User-Id")).encode() if self._authenticator is not None else b""
        peer = self._peers.heard(name.bytes, file, owner)
        if peer.connected:
            self._guard.took(file, size)
        if reason := self._offence(peer, len(packet)):
            if self._tell(peer, reason):
                self._guard.cut(file, reason)
            self._peers.forget(peer.id)
            return peer.id, []
        return peer.id, packet

    def _tell(self, peer: Peer, reason: str) -> bool:
        """Sends a reason over the connection of a packet; False if that is closed already, so that
        another one may have its descriptor by now."""
        self._socket.getsockopt(zmq.EVENTS)  # takes note of the connections that have ended
        try:
            self._socket.send_multipart(
                [peer.name, *pack(Error("malformed", reason))], zmq.NOBLOCK, copy=True
            )
        except zmq.Again:
            return True
        except zmq.ZMQError as error:
            if error.errno != zmq.EHOSTUNREACH:
                raise
            return False
        return True

    def _offence(self, peer: Peer, frames: int) -> str:
        """Why a connection is cut after a packet of so many frames; empty: it is not."""
        assert self._guard is not None
        if frames > MAX_FRAMES:
            if self._clients is not None:
                self._clients.suspend(peer.owner)
            return "it sends what is not a message"
        if not self._names.genuine(peer.name, self._guard.accepted_count):
            return "it chose a name that ZeroMQ may give to another"
        if self._clients is not None and not self._clients.name(peer.owner):
            return "its key is not admitted"
        return ""

    def owner(self, peer: bytes) -> bytes:
        """The CURVE key (Z85) of a peer's connection; empty where links are not encrypted."""
        return self._peers.owner(peer)

    def name_of(self, key: bytes) -> str:
        """The name that the cloud's list of devices has for a key; empty without a list."""
        return self._clients.name(key) if self._clients else ""

    def take_revoked(self) -> set[bytes]:
        """Keys that lost their admission since the last call; their connections are cut."""
        revoked = self._clients.take_revoked() if self._clients else set()
        if revoked and self._guard is not None:
            for peer in [peer for peer in self._peers if peer.owner in revoked]:
                self._guard.cut(peer.file, "its key is not admitted")
                self._peers.forget(peer.id)
        return revoked

    def close(self) -> None:
        if self._guard is not None:
            self._guard.close()
        if self._clients is not None:
            self._clients.close()
        if self._authenticator is not None:
            self._authenticator.stop()
        self._socket.close()
        self._context.term()


def _address(endpoint: str) -> tuple[str, int]:
    """IP address and port of an endpoint, `*` included; an empty address for any other host."""
    host, _, port = endpoint.removeprefix("tcp://").rpartition(":")
    host = {"*": "0.0.0.0"}.get(host, host.strip("[]"))
    try:
        return str(ipaddress.ip_address(host)), int(port.replace("*", "0"))
    except ValueError:
        return "", 0


def _authenticator(
    context: zmq.Context[zmq.Socket[bytes]], clients: ClientFolder | None
) -> ThreadAuthenticator:
    """Answers ZeroMQ's question who may connect, and thereby names each connection by its key."""
    from zmq.auth import CURVE_ALLOW_ANY
    from zmq.auth.thread import ThreadAuthenticator  # asyncio, which a device does not need

    authenticator = ThreadAuthenticator(context, log=logging.getLogger("edgespec.zap"))
    if clients is None:
        authenticator.configure_curve("*", CURVE_ALLOW_ANY)
    else:
        authenticator.configure_curve_callback("*", clients)
    authenticator.start()
    return authenticator


def _descriptor(name: zmq.Frame) -> int | None:
    """File descriptor of the connection that brought a packet; None for a ZMTP older than 3.

    Random bytes pass for ZMTP 1.
    """
    try:
        return int(name.get(zmq.SRCFD))
    except zmq.ZMQError:
        return None


def _bound(socket: zmq.Socket[bytes], limits: LinkLimits, packet_bytes: int = MAX_PACKET) -> None:
    """Bounds the packets of a socket and the time that closing it takes."""
    socket.setsockopt(zmq.LINGER, _ms(limits.linger_s))
    socket.setsockopt(zmq.MAXMSGSIZE, packet_bytes)


def _probe(socket: zmq.Socket[bytes], limits: LinkLimits, vanished_s: float) -> None:
    """Lets the kernel probe silent connections, and close those silent for `vanished_s`; 0: as late
    as it can.

    ZeroMQ's heartbeats are not used: libzmq 4.3 ends the process if one is due, or waits to be
    answered, on a connection that was reset behind a full queue (see `edgespec.tcp`).
    """
    probe_s = math.ceil(limits.probe_s)
    count = math.ceil(vanished_s / probe_s) - 1 if vanished_s else _MOST_PROBES
    socket.setsockopt(zmq.TCP_KEEPALIVE, 1)
    socket.setsockopt(zmq.TCP_KEEPALIVE_IDLE, probe_s)
    socket.setsockopt(zmq.TCP_KEEPALIVE_INTVL, probe_s)
    socket.setsockopt(zmq.TCP_KEEPALIVE_CNT, max(1, count))
    if vanished_s:
        socket.setsockopt(zmq.TCP_MAXRT, _ms(vanished_s))


def _ms(seconds: float) -> int:
    """Whole milliseconds, never fewer than `seconds`."""
    return max(0, math.ceil(seconds * 1e3))


def _readable(socket: zmq.Socket[bytes], timeout: float) -> bool:
    """True once a packet waits; False after `timeout` seconds, never earlier."""
    return bool(socket.poll(_ms(timeout)))
