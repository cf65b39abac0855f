"""`edgespec edge-run`: one prompt and its answer, or a conversation (`edge_runtime.chat`)."""

from __future__ import annotations

import sys
from contextlib import ExitStack, closing
from functools import partial

from edge_runtime.chat import converse
from edge_runtime.client import Client
from edge_runtime.connection import chat_tokens
from edge_runtime.printing import AnswerPrinter, TextSettings, observer
from edge_runtime.session_file import SessionFile
from edgespec.config import EdgeSettings
from edgespec.errors import UsageError
from edgespec.manifest import Bundle
from edgespec.text import Codec
from edgespec.trace import Trace
from engines.machine.energy.sensors import find

__all__ = ["TextSettings", "edge_run"]


def edge_run(bundle: Bundle, settings: EdgeSettings, text: TextSettings) -> None:
    """Connects, answers and prints. Raises edgespec's errors once the committed text is printed."""
    text.sampling.check()
    if text.system and not text.chat:
        raise UsageError("--system is a message of a chat; pass --chat too")
    codec = Codec(bundle)
    # A bad prompt, or a bundle that cannot chat, is refused before the draft model is loaded.
    if text.conversation:
        if text.session:
            raise UsageError("--session keeps one answer; pass --prompt, or pipe a text in")
        prompt = None
        chat_tokens(codec, [{"role": "user", "content": "Hello"}], text.system)
    else:
        prompt = _tokens(codec, text)
    printer = AnswerPrinter(text, find(settings.energy) if settings.energy else None)
    with ExitStack() as stack:
        trace = Trace(settings.trace, "device") if settings.trace else None
        if trace:
            stack.enter_context(closing(trace))
        open_client = partial(Client, bundle, settings, observer(text, trace), codec)
        if prompt is None:
            converse(open_client, text, printer)
            return
        request = text.request(prompt)
        session = SessionFile(text.session, bundle, request) if text.session else None
        if session and session.finish:
            printer.show(session.text(codec), session.stats)
            return
        client = stack.enter_context(open_client())
        printer.print(partial(client.start, session.request if session else request), session)


def _tokens(codec: Codec, text: TextSettings) -> list[int]:
    """The prompt from the command line or standard input. Raises `UsageError` if there is none."""
    prompt = text.prompt if text.prompt is not None else _standard_input()
    if not text.chat:
        return codec.encode(prompt)
    return chat_tokens(codec, [{"role": "user", "content": prompt}], text.system)


def _standard_input() -> str:
    if sys.stdin.isatty():
        raise UsageError("there is no prompt; pass --prompt, pipe a text in, or use --chat")
    try:
        text = sys.stdin.read()
    except UnicodeDecodeError as error:
        raise UsageError(f"standard input is not UTF-8 text (byte {error.start})") from error
    if not text.strip():
        raise UsageError("standard input is empty; pass --prompt or pipe a text in")
    return text
