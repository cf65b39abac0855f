"""Bad requests drawn at random: each gets a status and one sentence, and the server lives."""

from __future__ import annotations

import json
import random
from collections import Counter
from typing import Any

from bench.serve.figures import Fuzz
from bench.serve.http_client import raw, whole
from bench.serve.load import at_once
from bench.serve.server import Server

AT_ONCE = 8
MOST_FAILURES = 20
PATHS = ("/v1/chat/completions", "/v1/completions", "/v1/responses")
GOOD: dict[str, dict[str, Any]] = {
    PATHS[0]: {"messages": [{"role": "user", "content": "w1"}], "max_tokens": 2},
    PATHS[1]: {"prompt": "w1 w2", "max_tokens": 2},
    PATHS[2]: {"input": "w1 w2", "max_output_tokens": 2},
}
ODD: tuple[Any, ...] = (
    None, True, False, 0, -1, 1, 2**31, 2**63, -(2**64), 1e308, -0.5, "", "w1", "\ud800",
    "x" * 9000, [], [[]], [None], {}, {"a": {"b": []}}, [1, 2, 3], [2**40], {"type": "json_schema"},
    {"type": "object", "properties": {"a": {"$ref": "#/b"}}}, [{"role": "tool"}],
)  # fmt: skip
FIELDS = (
    "model", "messages", "prompt", "input", "instructions", "temperature", "top_p", "top_k", "seed",
    "min_p", "stop", "n", "stream", "stream_options", "logprobs", "top_logprobs", "logit_bias",
    "presence_penalty", "repetition_penalty", "response_format", "grammar", "structured_outputs",
    "tools", "tool_choice", "prediction", "edgespec", "echo", "suffix", "text", "metadata",
)  # fmt: skip
RAW = (
    b"GET / HTTP/9.9\r\n\r\n", b"\x16\x03\x01\x02\x00\x01\x00",
    b"POST /v1/completions HTTP/1.1\r\n",
    b"POST /v1/completions HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: -5\r\n\r\n",
    b"POST /v1/completions HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 50\r\n\r\n{",
    b"POST /v1/completions HTTP/1.1\r\nHost: 127.0.0.1\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
    b"GET /" + b"a" * 70_000 + b" HTTP/1.1\r\n\r\n", b"\r\n" * 50, b"\x00" * 500,
)  # fmt: skip


def fuzz(server: Server, count: int, seed: int) -> Fuzz:
    """Sends `count` bad requests."""
    failures: list[str] = []

    def ask(number: int) -> str:
        draw = random.Random(f"{seed} {number}")
        if draw.random() < 0.05:
            return str(raw(server.url, draw.choice(RAW)) or "none")
        path, body, method = _request(draw)
        status, content = whole(server.url, path, body, method)
        if len(failures) < MOST_FAILURES and (sentence := _wrong(status, content)):
            failures.append(f"request {number} ({method} {path} {body[:120]!r}): {sentence}")
        return str(status or "none")

    statuses = Counter(at_once(count, AT_ONCE, ask))
    if any("Traceback" in line for line in list(server.log)):
        failures.append("the server's log has a traceback")
    return Fuzz(count, dict(sorted(statuses.items())), failures)


def _request(draw: random.Random) -> tuple[str, bytes, str]:
    """Path, body and method."""
    path = draw.choice(PATHS)
    kind = draw.random()
    if kind < 0.1:
        return path, draw.randbytes(draw.randrange(200)), "POST"
    if kind < 0.15:
        depth = draw.choice([50, 5000, 200_000])
        return path, b'{"prompt":' + b"[" * depth + b"]" * draw.choice([0, depth]), "POST"
    if kind < 0.2:
        return draw.choice(["/v2/x", "/v1/models/%00", "/%ff", "//", path]), b"{}", "DELETE"
    body = dict(GOOD[path])
    for _ in range(draw.randint(1, 3)):
        body[draw.choice(FIELDS)] = draw.choice(ODD)
    encoded = json.dumps(body).encode()
    if draw.random() < 0.1:
        encoded = encoded[: draw.randrange(len(encoded))]
    return path, encoded, "POST"


def _wrong(status: int, content: bytes) -> str:
    """What is wrong with a reply; empty: nothing."""
    if status == 0:
        return "no reply"
    if status >= 500:
        return f"status {status}: {content[:200]!r}"
    if status != 200 and b'"error"' not in content:
        return f"status {status} without a sentence"
    return ""
