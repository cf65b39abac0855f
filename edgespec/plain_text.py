"""Text from another machine or file, without characters that a terminal or a log would act on."""

from __future__ import annotations

import re
from typing import TextIO

_UNSAFE = (
    r"\x00-\x1f\x7f-\x9f"  # control characters, among them newlines and escape sequences
    r"\u2028\u2029"  # line and paragraph separators
    r"\ud800-\udfff"  # halves of characters, which UTF-8 cannot hold
    r"\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069"  # changes of the writing direction
)
PLAIN = rf"^[^{_UNSAFE}]*\Z"
"""Regular expression of plain text: one line without the characters above."""
_RUNS = re.compile(rf"[{_UNSAFE}]+")
_TERMINAL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")
"""Control characters other than newlines and tabs."""


def plain(text: str, limit_chars: int | None = None) -> str:
    """The text with each run of unsafe characters as one space, cut to `limit_chars`."""
    return _RUNS.sub(" ", text).strip()[:limit_chars]


def visible(text: str, out: TextIO) -> str:
    """The text as it may be written to `out`: a terminal gets no control characters.

    Newlines and tabs stay. A pipe or a file gets the text unchanged.
    """
    return _TERMINAL.sub("", text) if out.isatty() else text
