"""Calls of tools in the text of an answer, found while it is written.

    hermes  <tool_call>{"name": …, "arguments": {…}}</tool_call>, also of Qwen; text around it
    llama   {"name": …, "parameters": {…}}, perhaps after <|python_tag|>; several with `;` between

What only looks like a call, or calls a tool that was not offered, stays text.
"""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Callable, Collection
from typing import Any, NamedTuple

from edgespec.chat_template import ToolStyle

CALL_START, CALL_END = "<tool_call>", "</tool_call>"
_PYTHON_TAG = "<|python_tag|>"
_HEADER = re.compile(
    r'\s*\{\s*(?:"type"\s*:\s*"function"\s*,\s*)?"name"\s*:\s*"(?P<name>[^"\\]*)"\s*,\s*'
    r'"(?:arguments|parameters)"\s*:\s*(?=\{)'
)
_KEYS = ("name", "type", "parameters", "arguments", "function")


class Delta(NamedTuple):
    """A part of a call."""

    number: int
    """Number of the call in the answer."""
    arguments: str
    id: str = ""
    """Only in the first part."""
    name: str = ""
    """Only in the first part."""

    def as_json(self) -> dict[str, Any]:
        """OpenAI's form in a stream."""
        if not self.id:
            return {"index": self.number, "function": {"arguments": self.arguments}}
        function = {"name": self.name, "arguments": self.arguments}
        return {"index": self.number, "id": self.id, "type": "function", "function": function}


Found = list["str | Delta"]
"""Text of the answer, and parts of calls."""


class CallParser:
    """Takes the text of an answer piece by piece, and returns what of it is text and calls."""

    def __init__(self, style: ToolStyle, names: Collection[str], most: int | None = None) -> None:
        """`names`: the tools. `most`: calls after which the rest is dropped; None: no bound."""
        self._tagged = style == "hermes"
        self._names = names
        self._most = most
        self._buffer = ""
        self._step: Callable[[bool], Found | None] = self._text if self._tagged else self._begin
        """Reads a part of the buffer; None: it needs more text."""
        self._depth, self._in_string, self._escaped = 0, False, False
        """Place in the JSON of the arguments."""
        self.calls = 0

    def push(self, text: str, *, end: bool = False) -> Found:
        """Adds text. `end`: the answer ends here, so nothing is held back."""
        self._buffer += text
        found: Found = []
        while (more := self._step(end)) is not None:
            found += more
            if not self._buffer:
                break
        if end and self._buffer:
            found.append(self._take(len(self._buffer)))
        return [each for each in found if each != ""]

    def _take(self, count: int) -> str:
        taken, self._buffer = self._buffer[:count], self._buffer[count:]
        return taken

    def _text(self, end: bool) -> Found | None:
        """Text up to the next call. White space before a call is dropped."""
        place = self._buffer.find(CALL_START)
        if place >= 0:
            text = self._take(place).rstrip()
            self._step = self._header
            return [text]
        if end:
            rest = self._take(len(self._buffer))
            return [rest.rstrip() if self.calls else rest]
        kept = _overlap(self._buffer, CALL_START)
        kept += _white(self._buffer[: len(self._buffer) - kept])
        return [self._take(len(self._buffer) - kept)] if kept < len(self._buffer) else None

    def _begin(self, end: bool) -> Found | None:
        """The beginning of an answer without tags, or what follows a call."""
        rest = self._buffer.lstrip(" \n\t;" if self.calls else None)
        rest = rest.removeprefix(_PYTHON_TAG)
        if not rest or (_PYTHON_TAG.startswith(rest) and not end):
            return None
        if not _may_be_call(rest):
            self._step = self._plain
            return self._plain(end)
        self._step = self._header
        return []

    def _plain(self, end: bool) -> Found | None:
        """Text until the end."""
        del end
        return [self._take(len(self._buffer))] if self._buffer else None

    def _header(self, end: bool) -> Found | None:
        """The beginning of a call, up to its arguments."""
        body = self._buffer.removeprefix(CALL_START) if self._tagged else self._opened()
        match = _HEADER.match(body)
        if match and match["name"] in self._names and self._may_call:
            self._buffer = body[match.end() :]
            self._step, self._depth = self._arguments, 0
            return [self._start(match["name"], "")]
        place = self._buffer.find(CALL_END) if self._tagged else -1
        if not (end or place >= 0) and (self._tagged or _may_be_call(body)):
            return None
        whole = self._take(place + len(CALL_END) if place >= 0 else len(self._buffer))
        self._step = self._text if self._tagged else self._plain
        return [self._whole(whole)]

    def _opened(self) -> str:
        return self._buffer.lstrip(" \n\t;" if self.calls else None).removeprefix(_PYTHON_TAG)

    def _whole(self, text: str) -> str | Delta:
        """A call with its parts in another order, or text."""
        body = text.removeprefix(CALL_START).removesuffix(CALL_END)
        try:
            call = json.loads(body.strip(" \n\t;").removeprefix(_PYTHON_TAG))
        except (ValueError, RecursionError):
            return text
        if not isinstance(call, dict) or call.get("name") not in self._names:
            return text
        arguments = call.get("arguments", call.get("parameters", {}))
        if not self._may_call:
            return ""
        return self._start(call["name"], json.dumps(arguments, ensure_ascii=False))

    def _start(self, name: str, arguments: str) -> Delta:
        self.calls += 1
        return Delta(self.calls - 1, arguments, f"call_{secrets.token_hex(12)}", name)

    @property
    def _may_call(self) -> bool:
        return self._most is None or self.calls < self._most

    def _arguments(self, end: bool) -> Found | None:
        """The JSON of the arguments, as it comes."""
        for place, letter in enumerate(self._buffer):
            self._follow(letter)
            if not self._depth:
                self._step = self._tail
                return [Delta(self.calls - 1, self._take(place + 1))]
        if end and not self._buffer:
            return None
        return [Delta(self.calls - 1, self._take(len(self._buffer)))] if self._buffer else None

    def _follow(self, letter: str) -> None:
        if self._in_string:
            self._in_string = self._escaped or letter != '"'
            self._escaped = letter == "\\" and not self._escaped
        elif letter == '"':
            self._in_string = True
        else:
            self._depth += (letter in "{[") - (letter in "}]")

    def _tail(self, end: bool) -> Found | None:
        """What closes a call. Nothing of it is text."""
        if self._tagged:
            place = self._buffer.find(CALL_END)
            if place < 0 and not end:
                return None
            self._take(place + len(CALL_END) if place >= 0 else len(self._buffer))
            self._step = self._text if self._may_call else self._nothing
            return []
        place = self._buffer.find("}")
        if place < 0 and not end:
            return None
        self._take(place + 1 if place >= 0 else len(self._buffer))
        self._step = self._begin if self._may_call else self._nothing
        return []

    def _nothing(self, end: bool) -> Found | None:
        """What follows the last call."""
        del end
        self._take(len(self._buffer))
        return None


def _may_be_call(text: str) -> bool:
    """True if a text that begins like this may be a call in JSON."""
    start = re.match(r'\s*\{\s*(?:"(?P<key>[^"]*)(?P<closed>")?)?', text)
    if start is None:
        return not text.strip()
    key = start["key"]
    if key is None:
        return start.end() == len(text)
    return key in _KEYS if start["closed"] else any(each.startswith(key) for each in _KEYS)


def _overlap(text: str, word: str) -> int:
    """Length of the longest proper prefix of `word` that `text` ends with."""
    for length in range(min(len(text), len(word) - 1), 0, -1):
        if text.endswith(word[:length]):
            return length
    return 0


def _white(text: str) -> int:
    """Length of the white space that `text` ends with."""
    return len(text) - len(text.rstrip())
