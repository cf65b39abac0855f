"""A network in user space: a TCP proxy in a process of its own, for links that one can set.

Bytes pass through two lanes, up (from the device) and down. A lane is a queue in order: what comes
in at `now` goes out at

    max(previous, outside stalls(max(now, lane free) + 8 bytes / bandwidth + delay))
    delay = max(0, N(rtt / 2, jitter))

so nothing is ever reordered, also when the shape changes meanwhile. Connections share both lanes,
as they share a line. ZeroMQ runs through it unchanged; a connection has no half-closed state, and
opening one costs nothing.

Punctual to a fraction of a millisecond, also on a core that somebody else keeps busy: `select(2)`
waits in microseconds where epoll rounds up to milliseconds, and the process asks the scheduler to
run it as soon as it wakes (`_punctual`).
"""

from __future__ import annotations

import asyncio
import json
import math
import os
import random
import select
import selectors
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlsplit

from edgespec.errors import LinkError, UsageError

HOLD = 32 << 20
"""Bytes under way to one end; beyond that the other end's are left in its own socket."""

EARLY = 0.0004
"""Seconds before a delivery at which a lane wakes once: the longer a sleep, the later it ends."""


@dataclass(frozen=True)
class LinkShape:
    """What the link does to bytes. The default only passes them on."""

    rtt_ms: float = 0.0
    """Half of it is added each way."""
    jitter_ms: float = 0.0
    """Standard deviation of the one-way delay."""
    mbit: float = 0.0
    """Bandwidth each way, in 10^6 bits a second; 0 is unlimited."""
    stall_every: float = 0.0
    """Mean seconds between stalls, exponential: a loss as TCP shows it; 0 is never."""
    stall_ms: float = 200.0
    """Length of a stall: nothing is delivered either way, then everything at once."""
    seed: int = 0

    def check(self) -> None:
        """Raises `UsageError` for a value that no link can have."""
        for name, value in asdict(self).items():
            if name != "seed" and not (math.isfinite(value) and value >= 0):
                raise UsageError(f"a link's {name} is {value}; give a finite number, 0 or more")


class Accuracy(NamedTuple):
    """What the proxy itself adds to a round trip."""

    median_ms: float
    p99_ms: float


class EmulatedLink:
    """The caller's handle on the proxy. Its calls raise `LinkError` if the proxy is gone."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self._process = process
        (port,) = self._reply()
        self.endpoint = f"tcp://127.0.0.1:{port}"

    def shape(self, shape: LinkShape) -> None:
        """Holds, when this returns, for all bytes that the proxy reads from now on."""
        shape.check()
        self._ask("shape", asdict(shape))

    def cut(self) -> None:
        """Drops all connections and what was under way; new ones are taken."""
        self._ask("cut")

    def counters(self) -> tuple[int, int]:
        """Bytes that the device and the target have put in so far."""
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

    Nobody needs to listen on `target` yet: a connection that it refuses is closed.
    Raises `UsageError` for no such endpoint or core.
    """
    try:
        parts = urlsplit(target)
        host, port = parts.hostname, parts.port
    except ValueError:
        host = port = None
    if not host or not port or parts.scheme != "tcp":
        raise UsageError(f"{target!r} is no target; write tcp://HOST:PORT")
    process = subprocess.Popen(
        [sys.executable, "-m", __name__, host, str(port), *([] if core is None else [str(core)])],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, bufsize=0,
    )  # fmt: skip
    with process:
        try:
            yield EmulatedLink(process)
        finally:
            process.kill()


def accuracy(shape: LinkShape, core: int | None = None, probes: int = 50) -> Accuracy:
    """Round trips of a small packet to an echo in this process, less `shape.rtt_ms`.

    Loopback and the waking of this process's two threads are in it, 0.1 to 0.3 ms.
    """

    def echo() -> None:
        peer, _ = listener.accept()
        with peer:
            peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            with suppress(ConnectionResetError):
                while data := peer.recv(4096):
                    peer.sendall(data)

    took = []
    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=echo, daemon=True)
        thread.start()
        with emulated_link(f"tcp://127.0.0.1:{listener.getsockname()[1]}", core) as link:
            address = urlsplit(link.endpoint)
            with (
                socket.create_connection((address.hostname, address.port)) as device,
                device.makefile("rb") as echoed,
            ):
                device.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                for probe in range(-3, probes):  # connecting and first runs of code stay out
                    if probe == -1:
                        link.shape(shape)
                    start = time.perf_counter()
                    device.sendall(bytes(64))
                    if len(echoed.read(64)) < 64:
                        raise LinkError(
                            "the emulated link has dropped a connection to this process"
                        )
                    if probe >= 0:
                        took.append(1000 * (time.perf_counter() - start) - shape.rtt_ms)
        thread.join()
    took.sort()
    return Accuracy(took[len(took) // 2], took[min(len(took) - 1, int(0.99 * len(took)))])


class _Lane:
    """One direction of the link. Times are the loop's."""

    def __init__(self, loop: asyncio.AbstractEventLoop, name: str) -> None:
        self._loop = loop
        self._name = name
        self._queue: deque[tuple[float, _End, bytes]] = deque()
        self._timer: asyncio.TimerHandle | None = None
        self._free = self._last = 0.0
        self.entered = 0
        self.reshape(LinkShape())

    def reshape(self, shape: LinkShape) -> None:
        """Both lanes draw the same stalls, since those have a source of their own."""
        self._shape = shape
        self._jitter = random.Random(f"{self._name} {shape.seed}")
        self._stalls = random.Random(shape.seed)
        self._stall = self._resume = self._loop.time()
        # Pieces of at most half a millisecond: a message does not wait for those behind it.
        self._piece = max(1500, int(shape.mbit * 1e6 / 8 * 0.0005)) if shape.mbit else HOLD

    def put(self, end: _End, data: bytes) -> None:
        """`data` is to come out at `end`; empty data closes it."""
        self.entered += len(data)
        delay = self._shape.rtt_ms / 2
        if self._shape.jitter_ms:
            delay = max(0.0, self._jitter.gauss(delay, self._shape.jitter_ms))
        self._free = max(self._free, self._loop.time())
        idle = not self._queue
        for start in range(0, len(data), self._piece) or (0,):
            piece = data[start : start + self._piece]
            if self._shape.mbit:
                self._free += len(piece) * 8 / (self._shape.mbit * 1e6)
            self._last = max(self._last, self._after_stall(self._free + delay / 1000))
            self._queue.append((self._last, end, piece))
            end.under_way += len(piece)
        if idle:
            self._deliver()

    def clear(self) -> None:
        self._queue.clear()
        self._free = self._last = 0.0
        if self._timer is not None:
            self._timer.cancel()

    def _after_stall(self, at: float) -> float:
        if not self._shape.stall_every or not self._shape.stall_ms:
            return at
        while at >= self._resume:
            self._stall = self._resume + self._stalls.expovariate(1 / self._shape.stall_every)
            self._resume = self._stall + self._shape.stall_ms / 1000
        return at if at < self._stall else self._resume

    def _deliver(self) -> None:
        while self._queue and self._queue[0][0] <= self._loop.time():
            _, end, data = self._queue.popleft()
            end.write(data)
        if self._queue:
            at = self._queue[0][0]
            if at - self._loop.time() > 2 * EARLY:
                at -= EARLY
            self._timer = self._loop.call_at(at, self._deliver)


class _End(asyncio.Protocol):
    """The proxy's socket towards one side; asyncio sets TCP_NODELAY on it."""

    transport: asyncio.Transport

    def __init__(self, proxy: _Proxy, lane: _Lane, other: _End | None = None) -> None:
        self._proxy = proxy
        self._lane = lane
        self.other = other or self  # a device's end is alone until the target has answered
        self.under_way = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        self._proxy.made(self)

    def data_received(self, data: bytes) -> None:
        self._lane.put(self.other, data)
        self.other.throttle()

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002
        self._proxy.ends.discard(self)
        self._lane.put(self.other, b"")

    def resume_writing(self) -> None:
        self.throttle()

    def write(self, data: bytes) -> None:
        """What has come through the lane."""
        if not data:
            self.transport.close()
            return
        self.under_way -= len(data)
        self.transport.write(data)
        self.throttle()

    def throttle(self) -> None:
        """Reads from the other side only as fast as this one takes it."""
        if self.under_way + self.transport.get_write_buffer_size() > HOLD:
            self.other.transport.pause_reading()
        else:
            self.other.transport.resume_reading()


class _Proxy:
    """What runs in the process: commands on standard input, one reply each on standard output."""

    def __init__(self, loop: asyncio.AbstractEventLoop, host: str, port: int) -> None:
        self._loop = loop
        self._target = host, port
        self._lanes = _Lane(loop, "up"), _Lane(loop, "down")
        self._connecting: set[asyncio.Task[None]] = set()
        self.ends: set[_End] = set()

    async def listen(self) -> int:
        server = await self._loop.create_server(lambda: _End(self, self._lanes[0]), "127.0.0.1", 0)
        self._loop.add_reader(sys.stdin.fileno(), self._command)
        return int(server.sockets[0].getsockname()[1])

    def made(self, end: _End) -> None:
        self.ends.add(end)
        if end.other is end:
            end.transport.pause_reading()
            task = self._loop.create_task(self._connect(end))
            self._connecting.add(task)
            task.add_done_callback(self._connecting.discard)
        elif end.other.transport.is_closing():
            end.transport.abort()
        else:
            end.other.other = end
            end.other.transport.resume_reading()

    async def _connect(self, device: _End) -> None:
        try:
            await self._loop.create_connection(
                lambda: _End(self, self._lanes[1], device), *self._target
            )
        except OSError:
            device.transport.abort()

    def _command(self) -> None:
        line = os.read(sys.stdin.fileno(), select.PIPE_BUF)  # one command: none follows unanswered
        if not line:  # the parent is gone
            self._loop.stop()
            return
        name, *arguments = json.loads(line)
        if name == "shape":
            for lane in self._lanes:
                lane.reshape(LinkShape(**arguments[0]))
        elif name == "cut":
            for lane in self._lanes:
                lane.clear()
            for end in self.ends:
                end.transport.abort()
        _say([lane.entered for lane in self._lanes])


def _say(reply: object) -> None:
    print(json.dumps(reply), flush=True)


def _punctual() -> None:
    """Wakes without slack, and before whoever computes on the same core.

    The second takes a privilege (root, or a limit on `rtprio`). Without it the median stays the
    same, but some one packet in a hundred waits for the other's time slice, 2 to 4 ms.
    """
    with suppress(OSError):
        Path("/proc/self/timerslack_ns").write_text("1")
    with suppress(OSError):
        os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1))


def _main(host: str, port: str, core: str = "") -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent's to handle
    try:
        if core:
            os.sched_setaffinity(0, {int(core)})
        _punctual()
        loop = asyncio.SelectorEventLoop(selectors.SelectSelector())
        bound = loop.run_until_complete(_Proxy(loop, host, int(port)).listen())
    except OSError as error:
        _say(f"core {core}: {error.strerror}" if core else error.strerror)
        return
    _say([bound])
    loop.run_forever()


if __name__ == "__main__":
    _main(*sys.argv[1:])
