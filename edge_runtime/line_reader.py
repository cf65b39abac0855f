"""Reading typed turns, with line editing and a history if `prompt_toolkit` is installed."""

from __future__ import annotations

import contextlib
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path

from edgespec.errors import UsageError

PROMPT = "> "
HISTORY_ENTRIES_COUNT = 1000
"""Entries that a history keeps when it is next loaded."""

Reader = Callable[[], str | None]
"""Returns the next text; None at the end of input. Raises `UsageError` if it is not UTF-8, and
`KeyboardInterrupt` for Ctrl-C."""


def line_reader(history: Path) -> Reader:
    """A reader of standard input, with line editing if both standard streams are terminals.

    A pasted text of several lines is one text then, and the texts are kept in the file `history`.
    """
    ask = _plain_prompt
    if sys.stdin.isatty() and sys.stdout.isatty():
        with contextlib.suppress(ModuleNotFoundError):
            ask = _editing_prompt(History(history))

    def read() -> str | None:
        try:
            return ask()
        except EOFError:
            return None

    return read


def _plain_prompt() -> str:
    try:
        return input(PROMPT)
    except UnicodeDecodeError as error:
        message = f"standard input is not UTF-8 text (byte {error.start})"
        raise UsageError(message) from error


def _editing_prompt(history: History) -> Callable[[], str]:
    """Raises `ModuleNotFoundError` without `prompt_toolkit`, which the extra `chat` brings."""
    from prompt_toolkit import PromptSession
    from prompt_toolkit.history import InMemoryHistory

    session = PromptSession(history=InMemoryHistory(history.load()))

    def ask() -> str:
        text = str(session.prompt(PROMPT))
        if text.strip():
            history.add(text)
        return text

    return ask


class History:
    """Typed texts in a file that only its owner can read, a JSON string per line.

    A file that cannot be read or written is no error: the history is then shorter.
    """

    def __init__(self, path: Path) -> None:
        self._path = path

    def load(self) -> list[str]:
        """The texts, oldest first. Removes the oldest from the file if there are too many."""
        texts = []
        with contextlib.suppress(OSError):
            for line in self._path.read_text(encoding="utf-8", errors="replace").splitlines():
                with contextlib.suppress(ValueError):
                    texts.append(str(json.loads(line)))
        kept = texts[-HISTORY_ENTRIES_COUNT:]
        if len(kept) < len(texts):
            self._write(kept, os.O_TRUNC)
        return kept

    def add(self, text: str) -> None:
        self._write([text], os.O_APPEND)

    def _write(self, texts: list[str], flag: int) -> None:
        with contextlib.suppress(OSError):
            self._path.parent.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | flag, 0o600)
            with open(descriptor, "w", encoding="utf-8") as file:
                os.fchmod(descriptor, 0o600)
                file.writelines(json.dumps(text) + "\n" for text in texts)
