"""ZeroMQ under the protocol: DEALER on the device, ROUTER in the cloud, CurveZMQ beyond loopback.

Loops take a `Link` or a `Hub`, so tests hand them one that lives in the process.
"""

from __future__ import annotations

import ipaddress
import math
from pathlib import Path
from typing import Protocol
from urllib.parse import urlsplit

import zmq
import zmq.auth

from edgespec.errors import LinkError, UsageError
from edgespec.protocol import MAX_PACKET, AnyMessage, Message, Packet, pack, unpack

QUEUE = 10_000
"""Packets that may wait for one peer; beyond that they are dropped, and asked for again."""


class Link(Protocol):
    """The device's end."""

    bytes_up: int
    bytes_down: int

    def send(self, message: Message) -> None: ...

    def receive(self, timeout: float) -> list[AnyMessage]:
        """Messages that have come, waiting at most `timeout` seconds for the first."""


class Hub(Protocol):
    """The cloud's end. A peer is the opaque name of one connection."""

    def send(self, peer: bytes, message: Message) -> None: ...

    def receive(self, timeout: float) -> list[tuple[bytes, Packet]]:
        """Packets that have come, not yet decoded, waiting at most `timeout` seconds."""


def is_loopback(endpoint: str) -> bool:
    """Whether an endpoint can be reached from this machine alone. Raises `UsageError`."""
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
    """Connects to a cloud. ZeroMQ reconnects by itself; what was lost meanwhile is asked again."""

    def __init__(self, endpoint: str, server_key: Path | None = None) -> None:
        if not is_loopback(endpoint) and server_key is None:
            raise UsageError(
                f"{endpoint} is not on this machine, so the link must be encrypted: pass "
                "--server-key with the key file that 'edgespec keygen' wrote for the cloud"
            )
        cloud_key = _read_key(server_key, secret=False)[0] if server_key else b""
        self._context = zmq.Context()
        self._socket = self._context.socket(zmq.DEALER)
        self._socket.setsockopt(zmq.LINGER, 500)
        self._socket.setsockopt(zmq.RECONNECT_IVL_MAX, 2000)
        self._socket.setsockopt(zmq.SNDHWM, QUEUE)
        self._socket.setsockopt(zmq.MAXMSGSIZE, MAX_PACKET)
        self._socket.setsockopt(zmq.IPV6, "[" in endpoint)
        self.bytes_up = self.bytes_down = 0
        try:
            if cloud_key:
                self._socket.curve_publickey, self._socket.curve_secretkey = zmq.curve_keypair()
                self._socket.curve_serverkey = cloud_key
            self._socket.connect(endpoint)
        except zmq.ZMQError as error:
            self.close()
            raise LinkError(f"cannot connect to {endpoint}: {error.strerror}") from error

    def send(self, message: Message) -> None:
        packet = pack(message)
        self.bytes_up += sum(map(len, packet))
        self._socket.send_multipart(packet, copy=True)

    def receive(self, timeout: float) -> list[AnyMessage]:
        messages: list[AnyMessage] = []
        for packet in _drain(self._socket, timeout):
            self.bytes_down += sum(map(len, packet))
            messages.append(unpack(packet))
        return messages

    def close(self) -> None:
        self._socket.close()
        self._context.term()


class RouterHub:
    """Listens for devices."""

    def __init__(self, endpoint: str, secret_key: Path | None = None) -> None:
        if not is_loopback(endpoint) and secret_key is None:
            raise UsageError(
                f"{endpoint} can be reached from other machines, so the link must be encrypted: "
                "make keys with 'edgespec keygen' and pass --key"
            )
        keys = _read_key(secret_key, secret=True) if secret_key else None
        self._context = zmq.Context()
        self._socket = self._context.socket(zmq.ROUTER)
        self._socket.setsockopt(zmq.LINGER, 500)
        self._socket.setsockopt(zmq.MAXMSGSIZE, MAX_PACKET)
        self._socket.setsockopt(zmq.SNDHWM, QUEUE)
        self._socket.setsockopt(zmq.IPV6, "[" in endpoint)
        try:
            if keys is not None:
                self._socket.curve_publickey, self._socket.curve_secretkey = keys
                self._socket.curve_server = True
            self._socket.bind(endpoint)
        except zmq.ZMQError as error:
            self.close()
            reason = (
                "another program is listening there; choose another port"
                if error.errno == zmq.EADDRINUSE
                else error.strerror
            )
            raise LinkError(f"cannot listen on {endpoint}: {reason}") from error
        self.endpoint = self._socket.getsockopt_string(zmq.LAST_ENDPOINT)

    def send(self, peer: bytes, message: Message) -> None:
        self._socket.send_multipart([peer, *pack(message)], copy=True)

    def receive(self, timeout: float) -> list[tuple[bytes, Packet]]:
        return [(frames[0], frames[1:]) for frames in _drain(self._socket, timeout)]

    def close(self) -> None:
        self._socket.close()
        self._context.term()


def _drain(socket: zmq.Socket[bytes], timeout: float) -> list[Packet]:
    packets: list[Packet] = []
    if not socket.poll(
        max(0, math.ceil(timeout * 1000))
    ):  # never early, or a short wait would spin
        return packets
    while len(packets) < QUEUE:
        try:
            packets.append(socket.recv_multipart(zmq.NOBLOCK))
        except zmq.Again:
            break
    return packets


def _read_key(path: Path, *, secret: bool) -> tuple[bytes, bytes]:
    try:
        public, private = zmq.auth.load_certificate(path)
    except (OSError, ValueError) as error:
        raise UsageError(f"{path} is no key file; make one with 'edgespec keygen'") from error
    if any(len(key) != 40 for key in (public, private or public)):
        raise UsageError(f"{path} holds no valid key; make one with 'edgespec keygen'")
    if secret and private is None:
        raise UsageError(f"{path} holds no secret key; pass the .key_secret file")
    return public, private or b""
