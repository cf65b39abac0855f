"""Tools of a chat request: what the template gets, and the grammar of calls that must be made."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from edge_runtime.api.errors import ApiError
from edge_runtime.api.tool_calls import CALL_END, CALL_START, CallParser
from edgespec.chat_template import ToolStyle
from edgespec.errors import UsageError
from edgespec.grammar import Grammar

_NAME = re.compile(r"[a-zA-Z0-9_-]{1,64}")
_NO_PARAMETERS: Mapping[str, Any] = {"type": "object", "properties": {}}
_DEFINITIONS = ("$defs", "definitions")
_ONE_LINE = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}
MOST_TOOLS = 128


class Function(msgspec.Struct, omit_defaults=True):
    name: str
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class Tool(msgspec.Struct):
    function: Function
    type: str = "function"


@dataclass(frozen=True)
class ToolUse:
    """The tools of a request that may be called."""

    tools: Sequence[Tool]
    named: str = ""
    """Tool that must be called; empty: any."""
    required: bool = False
    """True if the answer must be a call."""
    parallel: bool = True
    """True if the answer may have several calls."""

    @property
    def described(self) -> list[dict[str, Any]]:
        """What the chat template gets."""
        return [msgspec.to_builtins(tool) for tool in self.tools]

    def check(self, style: ToolStyle) -> None:
        """Raises `ApiError` if the model's chat template cannot have tools."""
        if style not in ("hermes", "llama"):
            what = "has no tools" if not style else "calls tools in a form that is not supported"
            raise ApiError(
                400, f"the chat template of this model {what}; leave tools out", param="tools",
                code="unsupported_parameter",
            )  # fmt: skip

    def parser(self, style: ToolStyle) -> CallParser:
        most = None if self.parallel and not self.named else 1
        return CallParser(style, {tool.function.name for tool in self.tools}, most)

    def stops(self, style: ToolStyle) -> tuple[str, ...]:
        """Texts that end an answer with one call."""
        return (CALL_END,) if style == "hermes" and not (self.parallel or self.required) else ()

    def grammar(self, style: ToolStyle) -> Grammar | None:
        """The grammar of the calls that must be made; None: none must be. Raises `ApiError`."""
        if not self.required:
            return None
        callable_tools = [t for t in self.tools if self.named in ("", t.function.name)]
        names = [f"call_{number}" for number in range(len(callable_tools))]
        one, more = "(" + " | ".join(names) + ")", self.parallel and not self.named
        if style == "hermes":
            one = f'"{CALL_START}\\n" {one} "\\n{CALL_END}"'
            start = f'{one} ("\\n" {one})*' if more else one
        else:
            start = f'{one} ("; " {one})*' if more else one
        key = "arguments" if style == "hermes" else "parameters"
        rules = [
            f"{name}: %json {json.dumps(_call_schema(tool.function, key), ensure_ascii=False)}"
            for name, tool in zip(names, callable_tools, strict=True)
        ]
        grammar = Grammar("lark", "\n".join([f"start: {start}", *rules, ""]))
        try:
            grammar.check()
        except UsageError as error:
            raise ApiError(400, f"the tools are too many: {error}", param="tools") from error
        return grammar


def _call_schema(function: Function, key: str) -> dict[str, Any]:
    """The schema of a call. Definitions move to its root, where references look for them."""
    parameters = dict(function.parameters or _NO_PARAMETERS)
    definitions = {name: parameters.pop(name) for name in _DEFINITIONS if name in parameters}
    return {
        "x-guidance": _ONE_LINE,
        "type": "object",
        "properties": {"name": {"const": function.name}, key: parameters},
        "required": ["name", key],
        "additionalProperties": False,
        **definitions,
    }


def tool_use(tools: Sequence[Tool] | None, choice: Any, parallel: bool | None) -> ToolUse | None:
    """The tools that a request lets the model call; None: it calls none. Raises `ApiError`."""
    _check_tools(tools or [])
    if choice in (None, "auto", "none"):
        if not tools or choice == "none":
            return None
        return ToolUse(tools, parallel=parallel is not False)
    if not tools:
        raise _invalid("tool_choice needs tools")
    if choice == "required":
        return ToolUse(tools, required=True, parallel=parallel is not False)
    function = choice.get("function") if isinstance(choice, dict) else None
    name = function.get("name") if isinstance(function, dict) else None
    if name not in [tool.function.name for tool in tools]:
        raise _invalid("tool_choice must be auto, none, required, or name one of the tools")
    return ToolUse(tools, named=name, required=True, parallel=False)


def _check_tools(tools: Sequence[Tool]) -> None:
    if len(tools) > MOST_TOOLS:
        raise _invalid(f"{len(tools)} tools were given; at most {MOST_TOOLS} fit", "tools")
    for tool in tools:
        if tool.type != "function":
            raise _invalid(f"tools of the type {tool.type!r} are not supported", "tools")
        if not _NAME.fullmatch(tool.function.name):
            raise _invalid(
                f"the name of a tool is 1 to 64 letters, digits, _ and -: {tool.function.name!r}",
                "tools",
            )
    names = [tool.function.name for tool in tools]
    if len(set(names)) < len(names):
        raise _invalid("two tools have the same name", "tools")


def _invalid(sentence: str, param: str = "tool_choice") -> ApiError:
    return ApiError(400, sentence, param=param)
