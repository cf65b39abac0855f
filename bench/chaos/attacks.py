"""Attackers: raw TCP connections and sockets of ZeroMQ without a device's care.

Each attack lasts a second or two. It connects to the cloud itself, not through the link. On a cloud
with keys, an attacker uses ZeroMQ with a listed key of its own: a device that was broken into.
"""

from __future__ import annotations

import random
import socket
import struct
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import zmq

from bench.chaos.packets import random_packet
from bench.chaos.toy import any_request, hello
from edgespec.keys import read_pair, read_public
from edgespec.protocol import SECRET_BYTES, Close, Draft, Open, Packet, Resume, Terms, pack

ATTACK_S = 1.0
SEND_BYTES = 65_536
ZMTP_NULL_GREETING = b"\xff" + bytes(8) + b"\x7f\x03\x00" + b"NULL".ljust(20, b"\0") + bytes(32)
ZMTP_READY = b"\x04\x1c\x05READY\x0bSocket-Type\x00\x00\x00\x06DEALER"
ZMTP_PING = b"\x04\x07\x04PING\0\0"
MORE_FRAME_BYTES = 8192
SECRET = bytes(SECRET_BYTES)
HOST = "127.0.0.1"


@dataclass(frozen=True)
class Victim:
    """A cloud under attack."""

    port: int
    server_key: Path | None
    """The cloud's public key; None: it has no keys."""
    key: Path | None
    """Secret key of the attacker."""
    sessions: Sequence[int]
    """Ids of running sessions of others, which an attacker could not know."""
    chance: random.Random


@contextmanager
def _tcp(victim: Victim) -> Iterator[socket.socket]:
    """A connection that does not block for long; the cloud may reset it at any time."""
    with suppress(OSError), socket.create_connection((HOST, victim.port), 1.0) as end:
        end.settimeout(0.2)
        yield end


def _pour(end: socket.socket, data: Callable[[], bytes]) -> None:
    """Sends until the time is over or the cloud resets the connection."""
    stop = time.monotonic() + ATTACK_S
    while time.monotonic() < stop:
        with suppress(TimeoutError):
            end.sendall(data())


def garbage_bytes(victim: Victim) -> None:
    for _ in range(3):
        with _guarded(), _tcp(victim) as end:
            end.sendall(victim.chance.randbytes(victim.chance.randint(1, SEND_BYTES)))
            time.sleep(0.1)


def endless_multipart(victim: Victim) -> None:
    size = MORE_FRAME_BYTES.to_bytes(8, "big")
    frames = (b"\x03" + size + bytes(MORE_FRAME_BYTES)) * (SEND_BYTES // MORE_FRAME_BYTES)
    with _guarded(), _tcp(victim) as end:
        end.sendall(ZMTP_NULL_GREETING + ZMTP_READY)
        _pour(end, lambda: frames)


def empty_frames(victim: Victim) -> None:
    with _guarded(), _tcp(victim) as end:
        end.sendall(ZMTP_NULL_GREETING + ZMTP_READY)
        _pour(end, lambda: b"\x01\x00" * (SEND_BYTES // 2))


def broken_queues(victim: Victim) -> None:
    """Fills the cloud's receive queue, leaves a PING behind it and breaks the connection."""
    packets = b"\0\1a" * 400 + ZMTP_PING + b"\0\1a" * 100 + ZMTP_PING
    stop = time.monotonic() + ATTACK_S
    while time.monotonic() < stop:
        with _guarded(), _tcp(victim) as end:
            end.sendall(ZMTP_NULL_GREETING + ZMTP_READY)
            end.recv(SEND_BYTES)
            end.sendall(packets)
            time.sleep(victim.chance.uniform(0.0, 0.01))
            end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


def silent_connections(victim: Victim) -> None:
    ends = []
    with suppress(OSError):
        for _ in range(100):
            ends.append(socket.create_connection((HOST, victim.port), 1.0))
    time.sleep(ATTACK_S)
    for end in ends:
        end.close()


@contextmanager
def _guarded() -> Iterator[None]:
    """The cloud resets connections, or is not there."""
    with suppress(OSError, RuntimeError):
        yield


@contextmanager
def _dealer(victim: Victim) -> Iterator[Callable[[Packet], None]]:
    """A socket after its Hello; yields a function that sends, or drops if the queue is full."""
    with zmq.Context() as context, context.socket(zmq.DEALER) as dealer:
        dealer.setsockopt(zmq.LINGER, 0)
        if victim.server_key and victim.key:
            dealer.curve_publickey, dealer.curve_secretkey = read_pair(victim.key)
            dealer.curve_serverkey = read_public(victim.server_key)
        dealer.connect(f"tcp://{HOST}:{victim.port}")

        def send(packet: Packet) -> None:
            with suppress(zmq.Again):
                dealer.send_multipart(packet, zmq.NOBLOCK)

        send(pack(hello("attacker")))
        yield send


def _steadily(act: Callable[[], None], pause_s: float = 0.001) -> None:
    stop = time.monotonic() + ATTACK_S
    while time.monotonic() < stop:
        act()
        time.sleep(pause_s)


def garbage_packets(victim: Victim) -> None:
    chance = victim.chance
    with _dealer(victim) as send:
        _steadily(lambda: send([chance.randbytes(chance.randint(0, 2000))] * chance.randint(1, 4)))


def random_packets(victim: Victim) -> None:
    with _dealer(victim) as send:
        _steadily(lambda: send(random_packet(victim.chance, victim.sessions)))


def large_opens(victim: Victim) -> None:
    with _dealer(victim) as send:
        _steadily(lambda: send([pack(_opening(victim, 1))[0], bytes(800_000)]), 0.02)


def foreign_sessions(victim: Victim) -> None:
    """Takes over running sessions of others by their ids, with a wrong secret."""
    chance = victim.chance

    def act() -> None:
        if not victim.sessions:
            return
        session = chance.choice(victim.sessions)
        send(pack(Resume(session, SECRET, 0)))
        send(pack(Draft(session, 1, 0, chance.randrange(200), [1, 2, 3])))
        send(pack(_opening(victim, session)))
        send(pack(Close(session, SECRET)))

    with _dealer(victim) as send:
        _steadily(act, 0.01)


def vanishing(victim: Victim) -> None:
    """Opens sessions and disappears in the middle of their drafts."""
    for _ in range(3):
        with _dealer(victim) as send:
            session = victim.chance.getrandbits(62)
            opening = _opening(victim, session)
            send(pack(opening))
            send(pack(Draft(session, 1, 0, opening.prompt_length, [1, 2, 3, 4])))
            time.sleep(victim.chance.uniform(0, 0.3))


def _opening(victim: Victim, session: int) -> Open:
    request = any_request(victim.chance)
    prompt = list(request.prompt)
    return Open(
        session, SECRET, len(prompt), request.max_tokens, request.sampling, [], Terms(), prompt
    )


ATTACKS: dict[str, Callable[[Victim], None]] = {
    "garbage bytes": garbage_bytes,
    "endless multipart": endless_multipart,
    "empty frames": empty_frames,
    "broken queues": broken_queues,
    "silent connections": silent_connections,
    "garbage packets": garbage_packets,
    "random valid-looking packets": random_packets,
    "Opens of 0.8 MB": large_opens,
    "foreign sessions": foreign_sessions,
    "vanishing device": vanishing,
}
