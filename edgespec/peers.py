"""The cloud's peers: one for each connection of a ROUTER socket.

ZeroMQ names connections by a counter, and lets the other side choose a name instead. So a name may
come again on another connection, which must not receive what was meant for the first. The cloud
therefore knows a peer by a number of its own, and sends only while the connection is the one that
brought the peer's packets.

A chosen name that the counter reaches later ends the process, by an assertion in libzmq (4.3). The
counter therefore begins at a random value, and a connection with a name that looks like the
counter's, but is ahead of it, is refused.
"""

from __future__ import annotations

import ctypes
import itertools
import os
import secrets
from collections.abc import Iterator
from typing import NamedTuple

import zmq

_NAME_BYTES = 5
"""Length of a generated name: a zero byte and the counter, 32 bits."""
_AHEAD_COUNT = 4096
"""Names beyond the connections counted so far that may be genuine: the count comes late."""
_PROBE = "inproc://first-name"


class Peer(NamedTuple):
    """One connection."""

    id: bytes
    """What the cloud calls it; never given twice."""
    name: bytes
    """What ZeroMQ calls it."""
    file: int
    """File descriptor."""
    inode: int
    """Number of the socket behind the descriptor, which tells it from a later one."""
    owner: bytes
    """CURVE key (Z85); empty where links are not encrypted."""

    @property
    def connected(self) -> bool:
        """True while the descriptor is that of this connection."""
        return _inode(self.file) == self.inode


class Peers:
    """Peers by id, the one silent for longest first."""

    def __init__(self, capacity: int) -> None:
        """`capacity`: peers that are remembered; those silent for longest are forgotten."""
        self._capacity = capacity
        self._by_id: dict[bytes, Peer] = {}
        self._by_name: dict[bytes, Peer] = {}
        self._numbers = itertools.count(1)

    def __iter__(self) -> Iterator[Peer]:
        return iter(list(self._by_id.values()))

    def get(self, peer: bytes) -> Peer | None:
        """The peer with this id, if it is remembered and its connection is open.

        One whose connection is closed stays: packets of it may still wait to be read.
        """
        found = self._by_id.get(peer)
        return found if found is not None and found.connected else None

    def heard(self, name: bytes, file: int, owner: bytes) -> Peer:
        """The peer that sent a packet: a new one if the name comes from another connection.

        Packets may be read after their connection was closed, so the inode does not count here.
        """
        peer = self._by_name.get(name)
        if peer is None or (peer.file, peer.owner) != (file, owner):
            if peer is not None:
                self.forget(peer.id)
            number = next(self._numbers).to_bytes(8, "big")
            peer = Peer(number, name, file, _inode(file), owner)
        else:
            del self._by_id[peer.id]
        self._by_id[peer.id] = self._by_name[name] = peer
        if len(self._by_id) > self._capacity:
            self.forget(next(iter(self._by_id)))
        return peer

    def owner(self, peer: bytes) -> bytes:
        """The key of a peer; empty if it is forgotten or has none."""
        found = self._by_id.get(peer)
        return found.owner if found is not None else b""

    def forget(self, peer: bytes) -> None:
        found = self._by_id.pop(peer, None)
        if found is not None and self._by_name.get(found.name) is found:
            del self._by_name[found.name]


class NameCounter:
    """ZeroMQ's counter of names of one ROUTER socket."""

    def __init__(self, first: int) -> None:
        self._first = first

    def genuine(self, name: bytes, connections: int) -> bool:
        """False for a name that looks like the counter's but lies beyond the first `connections`
        of them, so that the peer must have chosen it."""
        if len(name) != _NAME_BYTES or name[0]:
            return True
        number = int.from_bytes(name[1:], "big")
        return (number - self._first) % (1 << 32) <= connections + _AHEAD_COUNT


def router_socket(
    context: zmq.Context[zmq.Socket[bytes]],
) -> tuple[zmq.Socket[bytes], NameCounter]:
    """A ROUTER socket whose names nobody can predict, and its counter. Not bound yet.

    libzmq draws the first name from the C library's `rand`, which it does not seed.
    """
    ctypes.CDLL(None).srand(secrets.randbits(32))
    router = context.socket(zmq.ROUTER)
    router.bind(_PROBE)
    with context.socket(zmq.DEALER) as probe:
        probe.connect(_PROBE)
        probe.send(b"")
        name, _ = router.recv_multipart()
    router.unbind(_PROBE)
    return router, NameCounter(int.from_bytes(name[1:], "big"))


def _inode(file: int) -> int:
    """Number of the file behind a descriptor; 0 if it is closed."""
    try:
        return os.fstat(file).st_ino
    except OSError:
        return 0
