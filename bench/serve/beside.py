"""The server beside the client that it is made of: the same answers, in turns."""

from __future__ import annotations

import statistics
import time
from typing import Any, NamedTuple

from bench.lab.processes import cpu_seconds
from bench.lab.turns import rotated
from bench.serve.figures import Beside, Side
from bench.serve.http_client import streamed
from bench.serve.server import Server
from bench.serve.settings import ServeSettings
from edge_runtime.client import Client
from edgespec.errors import EdgespecError

PROMPT = "w1 w2 w3 w4 w5 w6 w7 w8"
SIDES = ("client", "server")


class _Answer(NamedTuple):
    first_ms: float
    token_ms: float
    cpu_ms: float
    text: str


def body(settings: ServeSettings) -> dict[str, Any]:
    return {"prompt": PROMPT, "max_tokens": settings.tokens, "temperature": 0}


def beside(client: Client, server: Server, settings: ServeSettings) -> Beside:
    """Answers of both sides in turns. Raises `EdgespecError` if their texts differ."""
    ask = {
        "client": lambda: _of_client(client, settings.tokens),
        "server": lambda: _of_server(server, settings),
    }
    found: dict[str, list[_Answer]] = {side: [] for side in SIDES}
    for turn in range(-2, settings.turns):  # the first two warm both up
        for side in rotated(SIDES, turn):
            answer = ask[side]()
            if turn >= 0:
                found[side].append(answer)
    if len({answer.text for answers in found.values() for answer in answers}) != 1:
        raise EdgespecError("the server's text is not the client's")
    pairs = list(zip(found["server"], found["client"], strict=True))
    return Beside(
        _side("client", found["client"], settings.tokens),
        _side("server", found["server"], settings.tokens),
        statistics.median(theirs.first_ms - ours.first_ms for theirs, ours in pairs),
        statistics.median(theirs.token_ms - ours.token_ms for theirs, ours in pairs),
    )


def _side(name: str, answers: list[_Answer], tokens: int) -> Side:
    return Side(
        name,
        statistics.median(answer.first_ms for answer in answers),
        statistics.median(answer.token_ms for answer in answers),
        sum(answer.cpu_ms for answer in answers) / len(answers) / tokens,
    )


def _of_client(client: Client, tokens: int) -> _Answer:
    cpu, began = time.process_time(), time.monotonic()
    texts, times = [], []
    for piece in client.complete(PROMPT, max_tokens=tokens):
        texts.append(piece.text)
        times.append(time.monotonic() - began)
    return _answer(times[0], times[-1], tokens, time.process_time() - cpu, "".join(texts))


def _of_server(server: Server, settings: ServeSettings) -> _Answer:
    cpu = cpu_seconds(server.pid)
    reply = streamed(server.url, body(settings))
    used = cpu_seconds(server.pid) - cpu
    return _answer(reply.first_s, reply.last_s, settings.tokens, used, reply.text)


def _answer(first_s: float, last_s: float, tokens: int, cpu_s: float, text: str) -> _Answer:
    return _Answer(1e3 * first_s, 1e3 * (last_s - first_s) / (tokens - 1), 1e3 * cpu_s, text)
