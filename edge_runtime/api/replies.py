"""Replies of OpenAI's API: one object, or the chunks of a stream.

A chat streams a chunk with the role, one for each piece of text with `finish_reason` null, and one
with an empty delta and the reason. A text completion's last chunk has an empty text instead. Usage
comes in a chunk of its own without choices, if it was asked for.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Collection, Iterable, Sequence
from typing import Any, Literal

import msgspec

from edge_runtime.api.errors import ApiError
from edge_runtime.api.logprobs import ChoiceLogprobs, Spell
from edge_runtime.api.tool_calls import CallParser, Delta
from edge_runtime.pieces import Piece
from edgespec.session import Finish
from edgespec.telemetry import AnswerStats

DONE = b"data: [DONE]\n\n"
_REASONS: dict[Finish, str] = {"end": "stop", "stop": "stop", "length": "length", "": "stop"}


def event(data: dict[str, Any]) -> bytes:
    """A server-sent event."""
    return b"data: " + msgspec.json.encode(data) + b"\n\n"


def pieces_of(pieces: Iterable[Piece]) -> list[dict[str, Any]]:
    """The pieces as clients may ask for them: text and origin of each token, and with `correction`
    the number of characters before it that stand."""
    return [
        {"text": piece.text, "origin": piece.origin}
        | ({} if piece.correction is None else {"correction": piece.correction})
        for piece in pieces
    ]


class Reply:
    """The objects of one reply; all of them have its id, time and model."""

    def __init__(
        self, kind: Literal["chat", "text"], model: str, fingerprint: str, count: int = 1
    ) -> None:
        """`count`: choices for each prompt."""
        self._chat = kind == "chat"
        prefix, name = (
            ("chatcmpl", "chat.completion") if self._chat else ("cmpl", "text_completion")
        )
        self._name = name
        self._count = count
        self._common = {
            "id": f"{prefix}-{secrets.token_hex(12)}",
            "created": int(time.time()),
            "model": model,
            "system_fingerprint": fingerprint,
        }

    def whole(self, choices: Sequence[dict[str, Any]], all_stats: Sequence[AnswerStats]) -> bytes:
        """The reply in one object; `choices` come from `choice`."""
        return msgspec.json.encode(
            self._object(self._name, choices) | figures(all_stats, self._count)
        )

    def logprobs(self, spell: Spell, end_ids: Collection[int]) -> ChoiceLogprobs:
        """The log-probabilities of one choice, to be filled."""
        return ChoiceLogprobs(spell, end_ids, chat=self._chat)

    def choice(
        self,
        index: int,
        text: str,
        stats: AnswerStats,
        pieces: Sequence[Piece] | None,
        logprobs: dict[str, Any] | None = None,
        calls: CallParser | None = None,
    ) -> dict[str, Any]:
        """A whole choice. `calls` finds the calls of tools in its text."""
        if calls is not None:
            message, reason = _calling(text, calls, stats)
            return self._choice(index, {"message": message}, reason, pieces, logprobs)
        content = {"message": _message(text)} if self._chat else {"text": text}
        return self._choice(index, content, _REASONS[stats.finish], pieces, logprobs)

    def first(self, index: int) -> bytes:
        """The first chunk of a choice: the role in a chat, nothing in a text completion."""
        return self._chunk([_choice(index, {"delta": _message("")}, None)]) if self._chat else b""

    def text(
        self,
        index: int,
        text: str,
        pieces: Sequence[Piece] | None,
        logprobs: dict[str, Any] | None = None,
    ) -> bytes:
        """A chunk with text; `pieces` and `logprobs` if the client asked for them."""
        content = {"delta": {"content": text}} if self._chat else {"text": text}
        return self._chunk([self._choice(index, content, None, pieces, logprobs)])

    def call(
        self,
        index: int,
        delta: Delta,
        pieces: Sequence[Piece] | None,
        logprobs: dict[str, Any] | None = None,
    ) -> bytes:
        """A chunk with a part of a call."""
        content = {"delta": {"tool_calls": [delta.as_json()]}}
        return self._chunk([self._choice(index, content, None, pieces, logprobs)])

    def last(self, index: int, stats: AnswerStats, *, called: bool = False) -> bytes:
        """The last chunk of a choice. `called`: it has calls of tools."""
        content: dict[str, Any] = {"delta": {}} if self._chat else {"text": ""}
        return self._chunk([_choice(index, content, _reason(stats, called))])

    def usage(self, all_stats: Sequence[AnswerStats]) -> bytes:
        """The chunk after all choices."""
        return self._chunk([], figures(all_stats, self._count))

    def failed(self, error: ApiError) -> bytes:
        """The end of a stream that cannot go on."""
        return event(error.body()) + DONE

    def _choice(
        self,
        index: int,
        content: dict[str, Any],
        reason: str | None,
        pieces: Sequence[Piece] | None,
        logprobs: dict[str, Any] | None,
    ) -> dict[str, Any]:
        choice = _choice(index, content, reason, logprobs)
        return choice if pieces is None else choice | {"edgespec": pieces_of(pieces)}

    def _chunk(self, choices: list[dict[str, Any]], more: dict[str, Any] | None = None) -> bytes:
        name = "chat.completion.chunk" if self._chat else self._name
        return event(self._object(name, choices) | (more or {}))

    def _object(self, name: str, choices: Sequence[dict[str, Any]]) -> dict[str, Any]:
        return {"object": name, **self._common, "choices": choices}


def _message(text: str) -> dict[str, Any]:
    return {"role": "assistant", "content": text}


def _reason(stats: AnswerStats, called: bool) -> str:
    reason = _REASONS[stats.finish]
    return "tool_calls" if called and reason == "stop" else reason


def _calling(text: str, parser: CallParser, stats: AnswerStats) -> tuple[dict[str, Any], str]:
    """The message of an answer that may call tools, and why it ended."""
    content, calls = "", list[dict[str, Any]]()
    for found in parser.push(text, end=True):
        if isinstance(found, str):
            content += found
        elif found.id:
            function = {"name": found.name, "arguments": found.arguments}
            calls.append({"id": found.id, "type": "function", "function": function})
        else:
            calls[-1]["function"]["arguments"] += found.arguments
    if not calls:
        return _message(content), _reason(stats, False)
    message = _message(content) | {"content": content or None, "tool_calls": calls}
    return message, _reason(stats, True)


def _choice(
    index: int,
    content: dict[str, Any],
    reason: str | None,
    logprobs: dict[str, Any] | None = None,
) -> dict[str, Any]:
    return {"index": index, **content, "logprobs": logprobs, "finish_reason": reason}


def figures(all_stats: Sequence[AnswerStats], count: int = 1) -> dict[str, Any]:
    """Usage and timings of a request, and a warning if a part of it is unverified."""
    warnings = [stats.warning for stats in all_stats if stats.warning]
    found = {
        "usage": usage(all_stats, count),
        "timings": timings(all_stats, count),
        "metrics": {"speculative_decoding": speculation(all_stats)},
    }
    return found | ({"warning": warnings[0]} if warnings else {})


def usage(all_stats: Sequence[AnswerStats], count: int = 1) -> dict[str, Any]:
    """Tokens of a request with `count` choices for each prompt, which counts once.

    Tokens of a prediction are accepted, or else count as rejected, as OpenAI's do.
    """
    prompt = sum(stats.prompt_tokens for stats in all_stats[::count])
    written = sum(stats.tokens for stats in all_stats)
    return {
        "prompt_tokens": prompt,
        "completion_tokens": written,
        "total_tokens": prompt + written,
        **_prediction(all_stats),
    }


def _prediction(all_stats: Sequence[AnswerStats]) -> dict[str, Any]:
    given = sum(stats.prediction_tokens for stats in all_stats)
    if not given:
        return {}
    accepted = sum(stats.predicted for stats in all_stats)
    rejected = sum(max(0, stats.prediction_tokens - stats.predicted) for stats in all_stats)
    return {
        "completion_tokens_details": {
            "accepted_prediction_tokens": accepted,
            "rejected_prediction_tokens": rejected,
        }
    }


def timings(all_stats: Sequence[AnswerStats], count: int = 1) -> dict[str, float]:
    """Speed and drafts of a request, with llama-server's names."""
    seconds = max((stats.seconds for stats in all_stats), default=0.0)
    first = max((stats.first_token_seconds for stats in all_stats), default=0.0)
    written = sum(stats.tokens for stats in all_stats)
    return {
        "prompt_n": sum(stats.prompt_tokens for stats in all_stats[::count]),
        "prompt_ms": round(1e3 * first, 3),
        "predicted_n": written,
        "predicted_ms": round(1e3 * (seconds - first), 3),
        "predicted_per_second": round(sum(s.tokens_per_second for s in all_stats), 3),
        "draft_n": sum(stats.verified for stats in all_stats),
        "draft_n_accepted": sum(stats.confirmed for stats in all_stats),
    }


def speculation(all_stats: Sequence[AnswerStats]) -> dict[str, Any]:
    """Drafts of a request, as vLLM reports them with `--per-request-spec-decode-metrics summary`.

    `acceptance_histogram[j]` is the number of target steps that confirmed j drafted tokens.
    """
    histogram = [0] * (1 + max((n for stats in all_stats for n in stats.acceptances), default=0))
    for stats in all_stats:
        for confirmed, steps in stats.acceptances.items():
            histogram[confirmed] += steps
    steps = sum(histogram)
    accepted = sum(stats.confirmed for stats in all_stats)
    drafted = sum(stats.verified for stats in all_stats)
    return {
        "mean_acceptance_length": 1 + accepted / steps if steps else 1.0,
        "draft_acceptance_rate": accepted / drafted if drafted else 0.0,
        "acceptance_histogram": histogram,
        "num_spec_steps": steps,
        "num_accepted_draft_tokens": accepted,
        "num_draft_tokens": drafted,
        "num_spec_tokens": max((stats.longest_draft for stats in all_stats), default=0),
    }
