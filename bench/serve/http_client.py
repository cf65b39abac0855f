"""A client of one request for each connection, that does little besides reading."""

from __future__ import annotations

import json
import socket
import time
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import msgspec

TIMEOUT_S = 120.0
PIECE = b'"text":"'


class Streamed(NamedTuple):
    """One streamed text completion."""

    first_s: float
    """Time from the request to the first text."""
    last_s: float
    """Time to the last text."""
    text: str


def streamed(url: str, body: dict[str, Any]) -> Streamed:
    """Streams a text completion. Reading is timed; decoding comes afterwards."""
    arrived: list[tuple[float, bytes]] = []
    began = time.monotonic()
    with _asked(url, "/v1/completions", json.dumps(body | {"stream": True}).encode()) as connection:
        while data := connection.recv(65536):
            arrived.append((time.monotonic(), data))
    texts = [at for at, data in arrived if PIECE in data and b'"text":""' not in data]
    whole = b"".join(data for _, data in arrived).partition(b"\r\n\r\n")[2]
    return Streamed(texts[0] - began, texts[-1] - began, _text(whole))


def whole(url: str, path: str, body: bytes, method: str = "POST") -> tuple[int, bytes]:
    """Status and body of a request; status 0 if the server closed the connection without one."""
    reply = bytearray()
    try:
        with _asked(url, path, body, method) as connection:
            while data := connection.recv(65536):
                reply += data
    except OSError:
        if not reply:
            return 0, b""
    head, _, content = bytes(reply).partition(b"\r\n\r\n")
    return (int(head.split(b" ", 2)[1]) if head.startswith(b"HTTP/1.1 ") else 0), content


def raw(url: str, request: bytes) -> int:
    """Status of the reply to bytes that need not be HTTP; 0 without one."""
    place = urlsplit(url)
    try:
        with socket.create_connection((place.hostname or "", place.port or 0), TIMEOUT_S) as sent:
            sent.sendall(request)
            sent.shutdown(socket.SHUT_WR)
            reply = sent.recv(65536)
    except OSError:
        return 0
    return int(reply.split(b" ", 2)[1]) if reply.startswith(b"HTTP/1.1 ") else 0


def _asked(url: str, path: str, body: bytes, method: str = "POST") -> socket.socket:
    place = urlsplit(url)
    connection = socket.create_connection((place.hostname or "", place.port or 0), TIMEOUT_S)
    head = (
        f"{method} {path} HTTP/1.1\r\nHost: {place.netloc}\r\nContent-Length: {len(body)}\r\n"
        "Connection: close\r\n\r\n"
    )
    connection.sendall(head.encode() + body)
    return connection


def _text(chunks: bytes) -> str:
    """The text of all events in a chunked body."""
    parts = []
    for line in chunks.splitlines():
        if line.startswith(b"data: {"):
            event = msgspec.json.decode(line[6:])
            parts += [choice["text"] for choice in event["choices"]]
    return "".join(parts)
