"""The link of a world: `python -m bench.chaos.proxy TARGET_PORT`, a TCP proxy that misbehaves.

It prints its port, then obeys the lines of its standard input:

    cut SHARE           resets each connection with this probability
    stall SECONDS       passes no byte on for this time, in either direction
    fragment SECONDS    passes bytes on in pieces of 1 to 7 bytes for this time
"""

from __future__ import annotations

import asyncio
import os
import random
import signal
import socket
import struct
import sys
import time
from contextlib import suppress

READ_BYTES = 65_536
CONNECT_TIMEOUT_S = 0.25
"""Time for the connection to the cloud. If the cloud's machine still has another one between the
same two ports, which was reset, the kernel would try in vain for seconds. A device would try again
from another port."""
LARGEST_PIECE_BYTES = 7
LONGEST_PAUSE_S = 0.0005
RESET = struct.pack("ii", 1, 0)
"""Value of SO_LINGER with which closing resets the connection."""
HOST = "127.0.0.1"


class _Proxy:
    def __init__(self, port: int) -> None:
        self._port = port
        self._chance = random.Random(port)
        self._stalled_until = self._fragmented_until = 0.0
        self._pairs: set[tuple[asyncio.StreamWriter, asyncio.StreamWriter]] = set()

    async def serve(self) -> None:
        server = await asyncio.start_server(self._accept, HOST, 0)
        asyncio.get_running_loop().add_reader(sys.stdin.fileno(), self._obey)
        print(server.sockets[0].getsockname()[1], flush=True)
        await server.serve_forever()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            up = asyncio.open_connection(HOST, self._port)
            up_reader, up_writer = await asyncio.wait_for(up, CONNECT_TIMEOUT_S)
        except (OSError, asyncio.TimeoutError):
            writer.close()
            return
        pair = writer, up_writer
        self._pairs.add(pair)
        try:
            await asyncio.gather(self._pump(reader, up_writer), self._pump(up_reader, writer))
        finally:
            self._pairs.discard(pair)

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError):
            end = writer.get_extra_info("socket")
            end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            while data := await reader.read(READ_BYTES):
                while (left := self._stalled_until - time.monotonic()) > 0:
                    await asyncio.sleep(left)
                for piece in self._pieces(data):
                    writer.write(piece)
                    await writer.drain()
                    if len(piece) < len(data):
                        await asyncio.sleep(self._chance.uniform(0, LONGEST_PAUSE_S))
        writer.close()

    def _pieces(self, data: bytes) -> list[bytes]:
        if time.monotonic() >= self._fragmented_until:
            return [data]
        pieces, start = [], 0
        while start < len(data):
            end = start + self._chance.randint(1, LARGEST_PIECE_BYTES)
            pieces.append(data[start:end])
            start = end
        return pieces

    def _obey(self) -> None:
        lines = os.read(sys.stdin.fileno(), READ_BYTES).decode().splitlines()
        if not lines:  # the runner has ended
            os._exit(0)
        for line in lines:
            order, _, amount = line.partition(" ")
            if order == "cut":
                self._cut(float(amount))
            elif order == "stall":
                self._stalled_until = time.monotonic() + float(amount)
            elif order == "fragment":
                self._fragmented_until = time.monotonic() + float(amount)

    def _cut(self, share: float) -> None:
        for pair in list(self._pairs):
            if self._chance.random() < share:
                for writer in pair:
                    end = writer.get_extra_info("socket")
                    with suppress(OSError):
                        end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
                    writer.transport.abort()


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    asyncio.run(_Proxy(int(sys.argv[1])).serve())
