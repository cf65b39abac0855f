"""Many requests: streams at once, and the memory that requests leave behind."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from bench.lab.processes import resident_mb
from bench.serve.beside import body
from bench.serve.figures import Memory, Together
from bench.serve.http_client import streamed, whole
from bench.serve.server import Server
from bench.serve.settings import ServeSettings
from edgespec.errors import EdgespecError

AT_ONCE = 8
"""Requests at once while the memory is measured."""
SHORT_TOKENS = 8
T = TypeVar("T")


def at_once(count: int, threads: int, ask: Callable[[int], T]) -> list[T]:
    """The results of `count` calls of `ask`, of which `threads` run at once."""
    with ThreadPoolExecutor(threads) as pool:
        return list(pool.map(ask, range(count)))


def together(server: Server, settings: ServeSettings) -> Together:
    """Streams at once, compared with one alone."""
    alone = streamed(server.url, body(settings)).text
    began = time.monotonic()
    replies = at_once(
        settings.streams, settings.streams, lambda _: streamed(server.url, body(settings))
    )
    seconds = time.monotonic() - began
    return Together(
        settings.streams,
        all(reply.text == alone for reply in replies),
        settings.streams * settings.tokens / seconds,
        1e3 * max(reply.first_s for reply in replies),
    )


def memory(server: Server, settings: ServeSettings) -> Memory:
    """The server's memory after a tenth of the requests, and after all of them."""
    short = json.dumps(body(settings) | {"max_tokens": SHORT_TOKENS}).encode()

    def ask(number: int) -> int:
        del number
        status, _ = whole(server.url, "/v1/completions", short)
        return status

    tenth = max(1, settings.requests // 10)
    statuses = at_once(tenth, AT_ONCE, ask)
    before, began = resident_mb(server.pid), time.monotonic()
    statuses += at_once(settings.requests - tenth, AT_ONCE, ask)
    seconds = time.monotonic() - began
    if set(statuses) != {200}:
        raise EdgespecError(f"requests got the statuses {sorted(set(statuses))}, not 200 alone")
    rate = (settings.requests - tenth) / seconds
    return Memory(settings.requests, before, resident_mb(server.pid), rate)
