"""An emulated network in user space: a TCP proxy in a process of its own (`bench.link.proxy`)."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict
from typing import NamedTuple
from urllib.parse import urlsplit

from bench.lab.percentile import percentile
from bench.link.shape import LinkShape
from edgespec.errors import LinkError, UsageError

PROXY = "bench.link.proxy"
PROBES_COUNT = 50
WARM_UP_COUNT = 3
"""Round trips before the first one that counts: connecting and the first run of code stay out."""
PACKET_BYTES = 64


class Accuracy(NamedTuple):
    """Time that the proxy itself adds to a round trip."""

    median_ms: float
    p99_ms: float


class EmulatedLink:
    """The caller's handle on the proxy. Its calls raise `LinkError` if the proxy is gone."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self._process = process
        (port,) = self._reply()
        self.endpoint = f"tcp://127.0.0.1:{port}"

    def shape(self, shape: LinkShape) -> None:
        """Set the shape. When this returns it holds for all bytes that the proxy reads later."""
        shape.check()
        self._ask("shape", asdict(shape))

    def cut(self) -> None:
        """Drop all connections and the bytes under way; new connections are accepted."""
        self._ask("cut")

    def counters(self) -> tuple[int, int]:
        """Bytes that the device and the target have sent so far."""
        up, down = self._ask("counters")
        return up, down

    def _ask(self, *command: object) -> list[int]:
        assert self._process.stdin is not None
        with suppress(BrokenPipeError):
            self._process.stdin.write(json.dumps(command).encode() + b"\n")
        return self._reply()

    def _reply(self) -> list[int]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise LinkError("the emulated link's process has ended; start the measurement again")
        reply = json.loads(line)
        if isinstance(reply, str):
            raise UsageError(f"the emulated link cannot start: {reply}")
        return list(reply)


@contextmanager
def emulated_link(target: str, core: int | None = None) -> Iterator[EmulatedLink]:
    """A link to `target`, as in tcp://127.0.0.1:5555, whose process runs on `core`.

    `target` may start to listen later: a connection that it refuses is closed.
    Raises `UsageError` for an invalid endpoint or core.
    """
    host, port = _address(target)
    process = subprocess.Popen(
        [sys.executable, "-m", PROXY, host, str(port), *([] if core is None else [str(core)])],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, bufsize=0,
    )  # fmt: skip
    with process:
        try:
            yield EmulatedLink(process)
        finally:
            process.kill()


def _address(endpoint: str) -> tuple[str, int]:
    try:
        parts = urlsplit(endpoint)
        host, port = parts.hostname, parts.port
    except ValueError:
        host = port = None
    if not host or not port or parts.scheme != "tcp":
        raise UsageError(f"{endpoint!r} is no target; write tcp://HOST:PORT")
    return host, port


def accuracy(shape: LinkShape, core: int | None = None, probes: int = PROBES_COUNT) -> Accuracy:
    """Round trips of a small packet to an echo in this process, less `shape.rtt_ms`.

    They include loopback and the waking of this process's two threads, 0.1 to 0.3 ms.
    """
    with (
        _echo() as target,
        emulated_link(target, core) as link,
        socket.create_connection(_address(link.endpoint)) as device,
    ):
        device.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for _ in range(WARM_UP_COUNT - 1):
            _round_trip_ms(device)
        link.shape(shape)
        _round_trip_ms(device)
        added = [_round_trip_ms(device) - shape.rtt_ms for _ in range(probes)]
    return Accuracy(percentile(added, 0.5), percentile(added, 0.99))


@contextmanager
def _echo() -> Iterator[str]:
    """The endpoint of a thread that sends everything back on one connection."""

    def serve() -> None:
        peer, _ = listener.accept()
        with peer:
            peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            with suppress(ConnectionResetError):
                while data := peer.recv(4096):
                    peer.sendall(data)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield f"tcp://127.0.0.1:{listener.getsockname()[1]}"
        thread.join()


def _round_trip_ms(device: socket.socket) -> float:
    """Raises `LinkError` if the connection is closed."""
    start = time.perf_counter()
    device.sendall(bytes(PACKET_BYTES))
    left = PACKET_BYTES
    while left:
        data = device.recv(left)
        if not data:
            raise LinkError("the emulated link has dropped a connection to this process")
        left -= len(data)
    return 1e3 * (time.perf_counter() - start)
