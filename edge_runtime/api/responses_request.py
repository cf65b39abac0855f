"""Requests of `POST /v1/responses`, for text. Fields that are not declared here are ignored.

Nothing is stored, so what refers to earlier responses is refused, and so is all that is not text.
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from edge_runtime.api.errors import ApiError
from edge_runtime.api.requests import ROLES, refuse_unsupported
from edgespec.sampling import Sampling

_TEXT = ("input_text", "output_text", "text")
"""Kinds of content that are text."""
_NEUTRAL: Mapping[str, Sequence[object]] = {
    "previous_response_id": (None, ""),
    "conversation": (None,),
    "prompt": (None,),
    "background": (None, False),
    "include": (None, []),
    "reasoning": (None, {}),
    "text": (None, {}, {"format": {"type": "text"}}),
    "tools": (None, []),
    "tool_choice": (None, "none", "auto"),
    "top_logprobs": (None, 0),
    "truncation": (None, "disabled"),
    "context_management": (None, []),
}


class _Content(msgspec.Struct):
    type: str = "input_text"
    text: str = ""


class _Item(msgspec.Struct):
    """A message. `type` of other items names what they are."""

    type: str = "message"
    role: str = "user"
    content: str | list[_Content] = ""

    def plain(self) -> dict[str, str]:
        """Role and text. Raises `ApiError` for what a text model cannot read."""
        kinds = [self.type] if self.type != "message" else []
        parts = [] if isinstance(self.content, str) else self.content
        kinds += [part.type for part in parts if part.type not in _TEXT]
        if kinds:
            raise ApiError(
                400, f"input of the type {kinds[0]!r} is not supported; send text", param="input"
            )
        text = self.content if isinstance(self.content, str) else "".join(p.text for p in parts)
        return {"role": ROLES.get(self.role, self.role), "content": text}


class ResponsesRequest(msgspec.Struct, kw_only=True):
    """The body."""

    input: str | list[_Item]
    model: str | None = None
    instructions: str | None = None
    max_output_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    seed: int | None = None
    """Not OpenAI's here; the same seed gives the same text."""
    stream: bool | None = None
    metadata: dict[str, str] | None = None
    """Comes back with the response."""
    previous_response_id: Any = None
    conversation: Any = None
    prompt: Any = None
    background: Any = None
    include: Any = None
    reasoning: Any = None
    text: Any = None
    tools: Any = None
    tool_choice: Any = None
    top_logprobs: Any = None
    truncation: Any = None
    context_management: Any = None

    def check_fields(self) -> None:
        """Raises `ApiError` for the first field that asks for what is not offered."""
        refuse_unsupported(self, _NEUTRAL)
        if self.max_output_tokens is not None and self.max_output_tokens < 1:
            raise ApiError(
                400, f"max_output_tokens is {self.max_output_tokens}; it must be at least 1",
                param="max_output_tokens",
            )  # fmt: skip

    def messages(self) -> list[Mapping[str, str]]:
        """The chat that the input is. Raises `ApiError`."""
        given = [_Item(content=self.input)] if isinstance(self.input, str) else self.input
        first = [{"role": "system", "content": self.instructions}] if self.instructions else []
        return [*first, *(item.plain() for item in given)]

    def sampling(self) -> Sampling:
        """OpenAI's default temperature is 1. Without a seed, each request gets a random one."""
        return Sampling(
            temperature=1.0 if self.temperature is None else self.temperature,
            top_p=1.0 if self.top_p is None else self.top_p,
            top_k=max(self.top_k or 0, 0),
            seed=(secrets.randbits(62) if self.seed is None else self.seed) % 2**63,
        )
