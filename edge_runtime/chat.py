"""A conversation on a terminal: typed prompts, each answered with the history before it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from functools import partial

from edge_runtime.client import Client
from edge_runtime.printing import AnswerPrinter, TextSettings
from edgespec.errors import UsageError


def converse(client: Client, text: TextSettings, printer: AnswerPrinter) -> None:
    """Reads prompts until the end of input. Ctrl-C ends the answer, not the conversation."""
    history: list[dict[str, str]] = []
    for prompt in _prompts():
        history.append({"role": "user", "content": prompt})
        tokens = client.chat_tokens(history, text.system)
        with contextlib.suppress(KeyboardInterrupt):
            printer.print(partial(client.start, text.request(tokens)))
        history.append({"role": "assistant", "content": printer.text})


def _prompts() -> Iterator[str]:
    while True:
        try:
            prompt = input("> ")
        except EOFError:
            return
        except UnicodeDecodeError as error:
            message = f"standard input is not UTF-8 text (byte {error.start})"
            raise UsageError(message) from error
        if prompt.strip():
            yield prompt
