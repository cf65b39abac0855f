"""Replies of `POST /v1/responses`: one object, or the events of a stream.

A stream is created, in progress, an item and a part of it added, deltas, text, part and item done,
and the whole response again: completed, or incomplete where the token limit ended it.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Sequence
from typing import Any, Literal

import msgspec

from edge_runtime.api.errors import ApiError
from edge_runtime.api.replies import speculation, timings
from edge_runtime.api.responses_request import ResponsesRequest
from edge_runtime.api.streaming import Sender, read_all
from edge_runtime.api.unverified import HeldText
from edge_runtime.completion import AsyncCompletion
from edge_runtime.pieces import Piece
from edgespec.telemetry import AnswerStats

Status = Literal["in_progress", "completed", "incomplete", "failed"]


class ResponsesReply:
    """The objects of one response; all of them have its id, time and model."""

    def __init__(self, asked: ResponsesRequest, model: str) -> None:
        self._item_id = f"msg_{secrets.token_hex(12)}"
        self._count = 0
        """Events so far."""
        self._common: dict[str, Any] = {
            "id": f"resp_{secrets.token_hex(12)}",
            "object": "response",
            "created_at": int(time.time()),
            "model": model,
            "instructions": asked.instructions,
            "max_output_tokens": asked.max_output_tokens,
            "temperature": 1.0 if asked.temperature is None else asked.temperature,
            "top_p": 1.0 if asked.top_p is None else asked.top_p,
            "metadata": asked.metadata or {},
            "previous_response_id": None,
            "parallel_tool_calls": True,
            "tool_choice": asked.tool_choice or "auto",
            "tools": [],
            "text": {"format": {"type": "text"}},
            "truncation": "disabled",
            "store": False,
        }

    async def write(self, sender: Sender, answers: Sequence[AsyncCompletion]) -> None:
        """Sends the response in one object. There is one answer."""
        (answer,) = answers

        async def ignore(number: int, text: str, piece: Piece | None) -> None:
            del number, text, piece

        await read_all(answers, ignore)
        whole = self._response(answer.stats, answer.partial_text)
        await sender.chunk(msgspec.json.encode(whole), more=False)

    async def stream(self, sender: Sender, answers: Sequence[AsyncCompletion]) -> None:
        """Sends the response event by event."""
        (answer,) = answers
        held, parts = HeldText(), list[str]()

        async def pass_on(number: int, text: str, piece: Piece | None) -> None:
            del number
            if text := held.pass_on(text, piece):
                parts.append(text)
                await sender.chunk(self._delta(text))

        await sender.chunk(self._begin())
        await read_all(answers, pass_on)
        if rest := held.flush():
            await pass_on(0, rest, None)
        await sender.chunk(self._end(answer.stats, "".join(parts)), more=False)

    def failed(self, error: ApiError) -> bytes:
        """The last event of a stream that cannot go on."""
        reason = {"code": "server_error", "message": str(error)}
        response = self._object("failed", []) | {"error": reason, "usage": None}
        return self._event("response.failed", response=response)

    def _begin(self) -> bytes:
        started = self._object("in_progress", []) | {"error": None, "usage": None}
        place = {"item_id": self._item_id, "output_index": 0, "content_index": 0}
        return b"".join(
            [
                self._event("response.created", response=started),
                self._event("response.in_progress", response=started),
                self._event(
                    "response.output_item.added", output_index=0, item=self._item("in_progress", [])
                ),
                self._event("response.content_part.added", part=_part(""), **place),
            ]
        )

    def _delta(self, text: str) -> bytes:
        return self._event(
            "response.output_text.delta", item_id=self._item_id, output_index=0, content_index=0,
            delta=text, logprobs=[],
        )  # fmt: skip

    def _end(self, stats: AnswerStats, text: str) -> bytes:
        place = {"item_id": self._item_id, "output_index": 0, "content_index": 0}
        whole = self._response(stats, text)
        return b"".join(
            [
                self._event("response.output_text.done", text=text, logprobs=[], **place),
                self._event("response.content_part.done", part=_part(text), **place),
                self._event("response.output_item.done", output_index=0, item=whole["output"][0]),
                self._event(f"response.{whole['status']}", response=whole),
            ]
        )

    def _response(self, stats: AnswerStats, text: str) -> dict[str, Any]:
        status: Status = "incomplete" if stats.finish == "length" else "completed"
        details = {"reason": "max_output_tokens"} if status == "incomplete" else None
        whole = self._object(status, [self._item(status, [_part(text)])]) | {
            "error": None,
            "incomplete_details": details,
            "usage": _usage(stats),
            "timings": timings([stats]),
            "metrics": {"speculative_decoding": speculation([stats])},
        }
        return whole | ({"warning": stats.warning} if stats.warning else {})

    def _object(self, status: Status, output: list[dict[str, Any]]) -> dict[str, Any]:
        return {**self._common, "status": status, "output": output, "incomplete_details": None}

    def _item(self, status: Status, content: list[dict[str, Any]]) -> dict[str, Any]:
        return {
            "id": self._item_id,
            "type": "message",
            "role": "assistant",
            "status": status,
            "content": content,
        }

    def _event(self, kind: str, **fields: Any) -> bytes:
        data = msgspec.json.encode({"type": kind, "sequence_number": self._count, **fields})
        self._count += 1
        return b"event: %b\ndata: %b\n\n" % (kind.encode(), data)


def _part(text: str) -> dict[str, Any]:
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": []}


def _usage(stats: AnswerStats) -> dict[str, Any]:
    return {
        "input_tokens": stats.prompt_tokens,
        "input_tokens_details": {"cached_tokens": 0, "cache_write_tokens": 0},
        "output_tokens": stats.tokens,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": stats.prompt_tokens + stats.tokens,
    }
