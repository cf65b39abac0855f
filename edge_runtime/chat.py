"""A conversation on a terminal: typed turns, each answered with the turns before it."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import NamedTuple

from edge_runtime.client import Client
from edge_runtime.line_reader import line_reader
from edge_runtime.printing import AnswerPrinter, TextSettings
from edgespec.config import cache_folder
from edgespec.errors import EdgespecError, LinkError
from edgespec.plain_text import plain

EXIT = "/exit"
HELP = f"""\
/help         show this list
/system TEXT  set the system message; without TEXT, remove it
/clear        forget the turns so far; the system message stays
/stats        show the figures of the last answer
/save FILE    write the conversation to a new file, as JSON
{EXIT}         end the chat, like Ctrl-D
Ctrl-C ends an answer. An empty line sends a turn again that was not answered."""
SEND_AGAIN = "press Enter to send the turn again"


class Turn(NamedTuple):
    """A user's message and its answer."""

    prompt: str
    answer: str


def converse(open_client: Callable[[], Client], text: TextSettings, printer: AnswerPrinter) -> None:
    """Answers typed turns until the end of input or `/exit`.

    Raises what `open_client` raises at the start. Later errors are shown, and the chat goes on.
    """
    with closing(Chat(open_client, text, printer)) as chat:
        read = line_reader(cache_folder() / "chat_history")
        while True:
            try:
                typed = read()
                if typed is None or typed.strip() == EXIT:
                    return
                chat.take(typed)
            except KeyboardInterrupt:  # discards what was typed
                print()


class Chat:
    """The state of a conversation: system message, answered turns and the client."""

    def __init__(
        self, open_client: Callable[[], Client], text: TextSettings, printer: AnswerPrinter
    ) -> None:
        """`open_client` is called now, and again after the client has failed."""
        self.turns: list[Turn] = []
        self.system = text.system
        self._open_client = open_client
        self._client = open_client()
        self._text = text
        self._printer = printer
        self._unanswered = ""
        """The last turn, if it has no answer."""
        self._commands: dict[str, Callable[[str], None]] = {
            "/help": lambda _: _say(HELP),
            "/system": self._set_system,
            "/clear": self._clear,
            "/stats": lambda _: self._printer.report_last(),
            "/save": self._save,
        }

    def take(self, typed: str) -> None:
        """Carries out a command, or answers a turn. A text of several lines is always a turn."""
        if typed.startswith("/") and "\n" not in typed.strip():
            name, _, argument = typed.strip().partition(" ")
            self._commands.get(name, partial(_refuse, name))(argument.strip())
        elif prompt := typed if typed.strip() else self._unanswered:
            self._answer(prompt)

    def close(self) -> None:
        """Closes the client."""
        self._client.close()

    def _answer(self, prompt: str) -> None:
        self._unanswered, self._printer.text = prompt, ""
        try:
            client = self._connected()
            request = self._text.request(self._fitting(client, prompt))
            self._printer.print(partial(client.start, request))
        except KeyboardInterrupt:
            if not self._printer.text:
                return _say(f"no answer was written; {SEND_AGAIN}")
        except LinkError as error:
            return _complain(f"{error}; {SEND_AGAIN}")
        except EdgespecError as error:
            self._unanswered = ""
            return _complain(str(error))
        self.turns.append(Turn(prompt, self._printer.text))
        self._unanswered = ""

    def _connected(self) -> Client:
        """The client; a new one if it has failed."""
        if not self._client.running:
            self._client.close()
            self._client = self._open_client()
        return self._client

    def _fitting(self, client: Client, prompt: str) -> list[int]:
        """Tokens of the conversation and `prompt`, without the oldest turns if the cloud's context
        cannot hold them and an answer."""
        context = client.welcome.context
        room, before = min(self._text.max_tokens, context // 2), len(self.turns)
        while len(tokens := client.chat_tokens(self._messages(prompt), self.system)) > (
            context - room
        ):
            if not self.turns:
                break
            del self.turns[0]
        dropped = before - len(self.turns)
        if dropped and not self._text.quiet:
            _say(
                f"[the cloud's context holds {context} tokens; dropped the oldest "
                f"{'turn' if dropped == 1 else f'{dropped} turns'} of the conversation]"
            )
        return tokens

    def _messages(self, prompt: str = "") -> list[dict[str, str]]:
        """The turns as messages of `role` and `content`, then the user's `prompt` if given."""
        messages = []
        for turn in self.turns:
            messages.append({"role": "user", "content": turn.prompt})
            messages.append({"role": "assistant", "content": turn.answer})
        return [*messages, {"role": "user", "content": prompt}] if prompt else messages

    def _set_system(self, message: str) -> None:
        self.system = message
        _say("the system message is set" if message else "there is no system message now")

    def _clear(self, _: str) -> None:
        self.turns.clear()
        self._unanswered = ""
        _say("the conversation is empty")

    def _save(self, name: str) -> None:
        if not name:
            return _complain("pass a file: /save FILE")
        first = [{"role": "system", "content": self.system}] if self.system else []
        messages = json.dumps([*first, *self._messages()], ensure_ascii=False, indent=1)
        try:
            with Path(name).expanduser().open("x", encoding="utf-8", errors="replace") as file:
                file.write(messages + "\n")
        except (OSError, RuntimeError) as error:  # RuntimeError: the home folder is unknown
            return _complain(f"cannot write {name}: {getattr(error, 'strerror', '') or error}")
        _say(f"wrote the conversation to {plain(name)}")


def _refuse(name: str, _: str) -> None:
    _complain(f"there is no command {name}; /help lists the commands")


def _complain(sentence: str) -> None:
    _say(f"edgespec: {plain(sentence)}")


def _say(text: str) -> None:
    sys.stdout.flush()
    print(text, file=sys.stderr, flush=True)
