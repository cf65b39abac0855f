"""The process of the emulated link: a TCP proxy that delays bytes as a `LinkShape` says.

Bytes pass through two lanes, up (from the device) and down. A lane is a queue in order. A byte that
arrives at `now` leaves at

    max(previous, outside stalls(max(now, lane free) + 8 bytes / bandwidth + delay))
    delay = max(0, N(rtt / 2, jitter))

Bytes are therefore never reordered, even if the shape changes meanwhile. All connections share both
lanes, like devices that share one uplink. ZeroMQ runs through the proxy unchanged. A connection has
no half-closed state, and opening one takes no time.

The proxy is punctual to a fraction of a millisecond, even on a core where another process computes:
`select(2)` waits in microseconds where epoll rounds up to milliseconds, and the process asks the
scheduler to run it as soon as it wakes (`_punctual`).
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import select
import selectors
import signal
import sys
from collections import deque
from contextlib import suppress
from pathlib import Path

from bench.link.shape import LinkShape

HOLD_BYTES = 32 << 20
"""Bytes under way to one end; beyond that the proxy stops reading from the other end."""
EARLY_S = 0.0004
"""Seconds before a delivery at which a lane wakes once: the longer a sleep, the later it ends."""
PIECE_S = 0.0005
"""Transmission time of the largest piece that is delivered at once: a message does not wait for
the messages behind it."""
LEAST_PIECE_BYTES = 1500


class _Lane:
    """One direction of the link. Times are those of the event loop, in seconds."""

    def __init__(self, loop: asyncio.AbstractEventLoop, name: str) -> None:
        self._loop = loop
        self._name = name
        self._queue: deque[tuple[float, _End, bytes]] = deque()
        self._timer: asyncio.TimerHandle | None = None
        self._free = self._last = 0.0
        self.entered = 0
        self.reshape(LinkShape())

    def reshape(self, shape: LinkShape) -> None:
        """Set the shape. Both lanes draw the same stalls from a generator of their own."""
        self._shape = shape
        self._jitter = random.Random(f"{self._name} {shape.seed}")
        self._stalls = random.Random(shape.seed)
        self._stall = self._resume = self._loop.time()
        in_time = int(shape.mbit * 1e6 / 8 * PIECE_S)
        self._piece_bytes = max(LEAST_PIECE_BYTES, in_time) if shape.mbit else HOLD_BYTES

    def put(self, end: _End, data: bytes) -> None:
        """Queue `data` for delivery at `end`; empty data closes it."""
        self.entered += len(data)
        delay = self._shape.rtt_ms / 2
        if self._shape.jitter_ms:
            delay = max(0.0, self._jitter.gauss(delay, self._shape.jitter_ms))
        self._free = max(self._free, self._loop.time())
        idle = not self._queue
        for start in range(0, len(data), self._piece_bytes) or (0,):
            piece = data[start : start + self._piece_bytes]
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
            if at - self._loop.time() > 2 * EARLY_S:
                at -= EARLY_S
            self._timer = self._loop.call_at(at, self._deliver)


class _End(asyncio.Protocol):
    """The proxy's socket towards one side; asyncio sets TCP_NODELAY on it."""

    transport: asyncio.Transport

    def __init__(self, proxy: _Proxy, lane: _Lane, other: _End | None = None) -> None:
        self._proxy = proxy
        self._lane = lane
        self.other = other or self  # itself until the target has accepted the connection
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
        """Deliver what has passed through the lane."""
        if not data:
            self.transport.close()
            return
        self.under_way -= len(data)
        self.transport.write(data)
        self.throttle()

    def throttle(self) -> None:
        """Stop reading from the other side while too many bytes are under way to this one."""
        if self.under_way + self.transport.get_write_buffer_size() > HOLD_BYTES:
            self.other.transport.pause_reading()
        else:
            self.other.transport.resume_reading()


class _Proxy:
    """The proxy. Commands arrive on standard input; each gets a reply on standard output."""

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
        line = os.read(sys.stdin.fileno(), select.PIPE_BUF)  # one: the next comes after the reply
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
    """Wake without timer slack, and before other processes on the same core.

    The second needs a privilege (root, or a limit on `rtprio`). Without it the median stays the
    same, but about one packet in a hundred waits for another process's time slice, 2 to 4 ms.
    """
    with suppress(OSError):
        Path("/proc/self/timerslack_ns").write_text("1")
    with suppress(OSError):
        os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1))


def _main(host: str, port: str, core: str = "") -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent handles it
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
