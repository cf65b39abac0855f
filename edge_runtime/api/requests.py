"""Requests of OpenAI's API. Fields that are not declared here are ignored.

Fields that would change the text in a way that edgespec does not offer are refused, unless they ask
for nothing.
"""

from __future__ import annotations

import json
import re
import reprlib
import secrets
from collections.abc import Mapping, Sequence
from typing import Any, Protocol, TypeVar

import msgspec

from edge_runtime.api.errors import ApiError
from edge_runtime.api.structured import Structured
from edge_runtime.api.tools import Tool, ToolUse, tool_use
from edgespec.logprobs import MAX_TOP_LOGPROBS
from edgespec.sampling import Sampling
from edgespec.sampling_parameters import MAX_BIASES, biases

MOST_CHOICES = 16
"""Largest product of `n` and the number of prompts."""
_MOST_STOPS = 16
_COMPLETION_TOKENS = 16
"""OpenAI's default length of a text completion."""
ROLES = {"developer": "system"}
"""Roles that chat templates know by another name."""
_TOOL = "tool"
"""Role of messages with the result of a call."""
_TOKEN_ID = re.compile(r"-?[0-9]{1,10}")
_PLACE = re.compile(r" - at `\$\.?(?P<place>[^`]*)`")


class StreamOptions(msgspec.Struct):
    include_usage: bool | None = None


class Part(msgspec.Struct):
    """A part of a message's content."""

    type: str = "text"
    text: str = ""


class CalledFunction(msgspec.Struct):
    name: str
    arguments: str | dict[str, Any] = ""

    def plain(self) -> dict[str, Any]:
        """Name and arguments, decoded, as chat templates have them. Raises `ApiError`."""
        try:
            arguments = self.arguments or "{}"
            decoded = json.loads(arguments) if isinstance(arguments, str) else arguments
        except (ValueError, RecursionError):
            decoded = None
        if not isinstance(decoded, dict):
            raise ApiError(
                400, f"the arguments of a call of {self.name!r} are no JSON object",
                param="messages",
            )  # fmt: skip
        return {"name": self.name, "arguments": decoded}


class ToolCall(msgspec.Struct):
    function: CalledFunction
    id: str | None = None
    type: str = "function"


class Message(msgspec.Struct):
    role: str
    content: str | list[Part] | None = None
    tool_calls: list[ToolCall] | None = None
    tool_call_id: str | None = None

    @property
    def of_tools(self) -> bool:
        """True if it calls a tool, or is the result of a call."""
        return self.role == _TOOL or bool(self.tool_calls)

    def plain(self) -> Mapping[str, Any]:
        """What chat templates get. Raises `ApiError` for what a text model cannot read."""
        if self.role == "function":
            raise ApiError(
                400, "messages of the role 'function' are not supported; use 'tool'",
                param="messages",
            )  # fmt: skip
        message: dict[str, Any] = {"role": ROLES.get(self.role, self.role), "content": self._text()}
        if self.tool_call_id is not None:
            message["tool_call_id"] = self.tool_call_id
        calls = [
            {"id": call.id or "", "type": call.type, "function": call.function.plain()}
            for call in self.tool_calls or []
        ]
        return message | ({"tool_calls": calls} if calls else {})

    def _text(self) -> str:
        parts = self.content if isinstance(self.content, list) else []
        for part in parts:
            if part.type != "text":
                raise ApiError(
                    400,
                    f"content of the type {part.type!r} is not supported; send text",
                    param="messages",
                )
        return self.content if isinstance(self.content, str) else "".join(p.text for p in parts)


class PredictedText(msgspec.Struct):
    """A text that the answer is expected to repeat (OpenAI's predicted outputs)."""

    content: str | list[Part]

    @property
    def text(self) -> str:
        parts = [] if isinstance(self.content, str) else self.content
        return self.content if isinstance(self.content, str) else "".join(p.text for p in parts)


class _Asked(Structured, kw_only=True):
    """What both kinds of request have in common."""

    model: str | None = None
    max_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    seed: int | None = None
    stop: str | list[str] | None = None
    n: int | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    edgespec: bool | None = None
    """Our own: each chunk or choice lists its pieces with their origins."""
    logprobs: bool | int | None = None
    logit_bias: dict[str, float] | None = None
    """Biases by token id, as text: ids could be chosen such that a dict of integers is slow."""
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    repetition_penalty: float | None = None
    min_p: float | None = None
    prediction: PredictedText | None = None

    @property
    def count(self) -> int:
        """Choices for each prompt. Raises `ApiError`."""
        count = 1 if self.n is None else self.n
        if not 1 <= count <= MOST_CHOICES:
            raise ApiError(400, f"n is {count}; it must be from 1 to {MOST_CHOICES}", param="n")
        return count

    @property
    def stops(self) -> tuple[str, ...]:
        stops = [self.stop] if isinstance(self.stop, str) else self.stop or []
        if len(stops) > _MOST_STOPS:
            raise ApiError(400, f"more than {_MOST_STOPS} stop texts were given", param="stop")
        return tuple(stop for stop in stops if stop)

    @property
    def wants_usage(self) -> bool:
        return bool(self.stream_options and self.stream_options.include_usage)

    def samplings(self) -> list[Sampling]:
        """The parameters of each choice. Without a seed, each request gets a random one.

        OpenAI's default temperature is 1. The choices of one request differ in their seeds.
        """
        seed = secrets.randbits(62) if self.seed is None else self.seed
        common = Sampling(
            temperature=1.0 if self.temperature is None else self.temperature,
            top_p=1.0 if self.top_p is None else self.top_p,
            top_k=max(self.top_k or 0, 0),  # -1 is vLLM's word for all
            min_p=self.min_p or 0.0,
            presence_penalty=self.presence_penalty or 0.0,
            frequency_penalty=self.frequency_penalty or 0.0,
            repetition_penalty=1.0 if self.repetition_penalty is None else self.repetition_penalty,
            logit_bias=biases(self.biases),
        )
        seeds = [(seed + number) % 2**63 for number in range(self.count)]
        return [msgspec.structs.replace(common, seed=each) for each in seeds]

    @property
    def biases(self) -> Mapping[int, float]:
        """`logit_bias` by token id. Raises `ApiError`."""
        given = self.logit_bias or {}
        if len(given) > MAX_BIASES:
            raise ApiError(
                400, f"logit_bias names {len(given)} tokens; at most {MAX_BIASES} may have one",
                param="logit_bias",
            )  # fmt: skip
        for token in given:
            if not _TOKEN_ID.fullmatch(token):
                raise ApiError(
                    400, f"logit_bias names {reprlib.repr(token)}, which is no token id",
                    param="logit_bias",
                )  # fmt: skip
        return {int(token): bias for token, bias in given.items()}

    def check(self, neutral: Mapping[str, Sequence[object]]) -> None:
        """Raises `ApiError` for the first field that is set to more than nothing.

        `neutral`: for each field that is not supported, the values that ask for nothing.
        """
        refuse_unsupported(self, neutral)
        self.constraint, self.biases  # noqa: B018 - they are checked
        if self.stream_options and not self.stream:
            raise ApiError(400, "stream_options needs stream", param="stream_options")


def refuse_unsupported(request: object, neutral: Mapping[str, Sequence[object]]) -> None:
    """Raises `ApiError` for the first field of `request` that has none of its `neutral` values."""
    for name, values in neutral.items():
        value = getattr(request, name)
        if not any(value is each or _equal(value, each) for each in values):
            raise ApiError(
                400, f"{name} is not supported yet; leave it out", param=name,
                code="unsupported_parameter",
            )  # fmt: skip


def _equal(value: object, other: object) -> bool:
    return type(value) is not bool and type(other) is not bool and value == other


_NEUTRAL: Mapping[str, Sequence[object]] = {}


class ChatRequest(_Asked, kw_only=True):
    """The body of `POST /v1/chat/completions`."""

    messages: list[Message]
    max_completion_tokens: int | None = None
    top_logprobs: int | None = None
    tools: list[Tool] | None = None
    tool_choice: Any = None
    parallel_tool_calls: bool | None = None
    functions: Any = None
    function_call: Any = None

    @property
    def limit(self) -> int | None:
        """Most tokens of the answer; None: as many as fit."""
        return self.max_tokens if self.max_completion_tokens is None else self.max_completion_tokens

    @property
    def alternatives(self) -> int | None:
        """Likeliest tokens to list with each token; None: no log-probabilities. Raises
        `ApiError`."""
        asked = _bounded("top_logprobs", self.top_logprobs or 0)
        if isinstance(self.logprobs, int) and not isinstance(self.logprobs, bool):
            raise ApiError(400, "logprobs is true or false in a chat", param="logprobs")
        if asked and not self.logprobs:
            raise ApiError(400, "top_logprobs needs logprobs", param="top_logprobs")
        return asked if self.logprobs else None

    def check_fields(self) -> None:
        self.check(
            {
                **_NEUTRAL,
                "functions": (None, []),
                "function_call": (None, "none", "auto"),
            }
        )
        if self.tool_use is not None and self.constraint is not None:
            raise ApiError(
                400, "tools and a format of the answer cannot be combined", param="tools"
            )

    @property
    def tool_use(self) -> ToolUse | None:
        """The tools that the model may call; None: it calls none. Raises `ApiError`."""
        return tool_use(self.tools, self.tool_choice, self.parallel_tool_calls)


class CompletionRequest(_Asked, kw_only=True):
    """The body of `POST /v1/completions`."""

    prompt: str | list[Any]
    echo: Any = None
    suffix: Any = None
    best_of: Any = None

    @property
    def limit(self) -> int:
        return _COMPLETION_TOKENS if self.max_tokens is None else self.max_tokens

    @property
    def alternatives(self) -> int | None:
        """Likeliest tokens to list with each token; None: no log-probabilities. Raises
        `ApiError`."""
        if self.logprobs is None or self.logprobs is False:
            return None
        if self.logprobs is True:
            raise ApiError(400, "logprobs is a number in a text completion", param="logprobs")
        return _bounded("logprobs", self.logprobs)

    def check_fields(self) -> None:
        alike = (None, 1, self.n)
        self.check({**_NEUTRAL, "echo": (None, False), "suffix": (None, ""), "best_of": alike})

    def prompts(self) -> list[str | list[int]]:
        """The prompts, as texts or token ids. Raises `ApiError`."""
        given: Any = self.prompt
        if isinstance(given, str) or (given and all(_is_id(each) for each in given)):
            given = [given]
        if not given or not all(
            isinstance(each, str)
            or (isinstance(each, list) and each and all(_is_id(token) for token in each))
            for each in given
        ):
            raise ApiError(
                400, "prompt must be a text, a list of token ids, or a list of either",
                param="prompt",
            )  # fmt: skip
        if (choices := len(given) * self.count) > MOST_CHOICES:
            raise ApiError(400, f"{choices} choices were asked for; at most {MOST_CHOICES} fit")
        return list(given)


def _bounded(name: str, count: int) -> int:
    if not 0 <= count <= MAX_TOP_LOGPROBS:
        raise ApiError(
            400, f"{name} is {count}; it must be from 0 to {MAX_TOP_LOGPROBS}", param=name
        )
    return count


def _is_id(value: object) -> bool:
    return type(value) is int


class Checked(Protocol):
    """A request whose fields can be checked beyond their types."""

    def check_fields(self) -> None:
        """Raises `ApiError`."""


R = TypeVar("R", bound=Checked)


def read(kind: type[R], body: bytes) -> R:
    """Decodes and checks a request. Raises `ApiError`."""
    try:
        request = msgspec.json.decode(body, type=kind)
    except msgspec.ValidationError as error:
        place = _PLACE.search(str(error))
        words = _PLACE.sub("", str(error)).replace("`", "'")
        param = place["place"] if place else None
        where = f"{param}: " if param else ""
        raise ApiError(400, f"{where}{words}", param=param) from error
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ApiError(400, f"the body is not JSON: {error}") from error
    request.check_fields()
    return request
