"""What the kernel knows of TCP connections that ZeroMQ owns, and how to end one gently. Linux.

libzmq 4.3 ends its process if a connection breaks while its receive queue is full and a ZMTP PING
waits behind: `stream_engine_base.cpp` takes the error of the socket for the end of the input, goes
on with what it has read before, and asserts in `out_event` when it is about to answer the PING. An
orderly end of the stream is free of that. A cloud therefore never lets ZeroMQ see a broken
connection: a socket filter drops what would break it (`ignore_resets`), and the cloud itself ends
connections in the orderly way (`end`).
"""

from __future__ import annotations

import contextlib
import ctypes
import socket
import struct
from collections.abc import Iterator
from typing import NamedTuple

COUNTED = hasattr(socket, "TCP_INFO")
"""True where the kernel counts the bytes of a connection."""

_SILENCE_OFFSETS = 52, 56
"""Offsets of `tcpi_last_data_recv` and `tcpi_last_ack_recv`, u32 in milliseconds, in `tcp_info`."""
_BYTES_OFFSET = 120
"""Offset of `tcpi_bytes_acked` and `tcpi_bytes_received`, two u64 (Linux 4.1)."""
_INFO_BYTES = _BYTES_OFFSET + 16

_ATTACH_FILTER = getattr(socket, "SO_ATTACH_FILTER", 26)
_DETACH_FILTER = getattr(socket, "SO_DETACH_FILTER", 27)
_LOAD_BYTE, _JUMP_IF_SET, _RETURN = 0x30, 0x45, 0x06
"""Instructions of the kernel's packet filter (`linux/filter.h`): code, two jumps, operand."""
_KEEP, _DROP = (_RETURN, 0, 0, 0xFFFF_FFFF), (_RETURN, 0, 0, 0)
_FLAGS_OFFSET, _RESET_FLAG = 13, 0x04
"""Place of the flags in a TCP header, and that of RST."""
_NO_RESETS = ((_LOAD_BYTE, 0, 0, _FLAGS_OFFSET), (_JUMP_IF_SET, 0, 1, _RESET_FLAG), _DROP, _KEEP)
_NOTHING = (_DROP,)


class Counts(NamedTuple):
    """The kernel's figures about a connection."""

    received_bytes: int
    acknowledged_bytes: int
    """Bytes sent that the peer's machine has taken."""
    silent_s: float
    """Time since the peer's machine last sent data or acknowledged any, probes included."""


@contextlib.contextmanager
def borrowed(file: int) -> Iterator[socket.socket]:
    """A socket object over a descriptor that ZeroMQ owns and closes. Raises `OSError`."""
    borrowed = socket.socket(fileno=file)
    try:
        yield borrowed
    finally:
        borrowed.detach()


def address(file: int) -> str:
    """HOST:PORT of the peer; empty where the descriptor is no connected socket."""
    try:
        with borrowed(file) as peer:
            name = peer.getpeername()
    except OSError:
        return ""
    return f"{name[0]}:{name[1]}" if isinstance(name, tuple) else "local"


def counts(file: int) -> Counts | None:
    """The figures of a connection; None if it is closed, no TCP, or where the kernel has none."""
    if not COUNTED:
        return None
    try:
        with borrowed(file) as peer:
            info = peer.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 256)
    except OSError:
        return None
    if len(info) < _INFO_BYTES:
        return None
    silent_ms = min(struct.unpack_from("I", info, offset)[0] for offset in _SILENCE_OFFSETS)
    acknowledged, received = struct.unpack_from("QQ", info, _BYTES_OFFSET)
    return Counts(received, acknowledged, silent_ms / 1e3)


def ignore_resets(file: int) -> None:
    """Keeps resets by peers from a connection, and from those that a listening socket accepts.

    Such a connection stays until its silence is noticed.
    """
    with contextlib.suppress(OSError), borrowed(file) as sock:
        _filter(sock, _NO_RESETS)


def listen(host: str, port: int, backlog: int) -> socket.socket:
    """A listening socket that ignores resets from its first connection on; port 0: any free one.

    Raises `OSError`.
    """
    sock = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.setblocking(False)
        ignore_resets(sock.fileno())
        sock.bind((host, port))
        sock.listen(backlog)
    except BaseException:
        sock.close()
        raise
    return sock


def heed_resets(file: int) -> None:
    """Undoes `ignore_resets`."""
    with contextlib.suppress(OSError), borrowed(file) as sock:
        sock.setsockopt(socket.SOL_SOCKET, _DETACH_FILTER, 0)


def hold(file: int, on: bool) -> None:
    """Lets a listening socket take no connection (whoever connects tries again), or take them."""
    with contextlib.suppress(OSError), borrowed(file) as sock:
        _filter(sock, _NOTHING if on else _NO_RESETS)


def end(file: int) -> None:
    """Ends a connection: nothing of the peer arrives any more, what waits in the kernel is dropped,
    and ZeroMQ reads the end of the stream. When it closes the socket, the peer is told by a reset.
    """
    with contextlib.suppress(OSError), borrowed(file) as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 0)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        _filter(sock, _NOTHING)
        sock.shutdown(socket.SHUT_RD)
        _discard(sock)


def _discard(sock: socket.socket) -> None:
    """Drops what waits to be read. On Linux, MSG_TRUNC does so without copying it."""
    with contextlib.suppress(OSError):
        while sock.recv(1 << 16, socket.MSG_DONTWAIT | socket.MSG_TRUNC):
            pass


def _filter(sock: socket.socket, instructions: tuple[tuple[int, int, int, int], ...]) -> None:
    """Lets the kernel drop segments of a TCP socket before they are looked at. Linux alone."""
    code = b"".join(struct.pack("HBBI", *each) for each in instructions)
    memory = ctypes.create_string_buffer(code)
    program = struct.pack("HP", len(instructions), ctypes.addressof(memory))
    sock.setsockopt(socket.SOL_SOCKET, _ATTACH_FILTER, program)
