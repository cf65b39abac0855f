"""`edgespec edge-run --chat` on a terminal, against a cloud in another process."""

import contextlib
import fcntl
import importlib.util
import json
import os
import pty
import re
import select
import signal
import socket
import stat
import subprocess
import sys
import termios
import time
from contextlib import closing

import pytest

import edgespec
from bench.lab.processes import cloud_process
from bench.link.emulator import emulated_link
from bench.link.shape import LinkShape
from edge_runtime import line_reader
from edge_runtime.chat import Chat
from edge_runtime.handshake import DeviceIdentity
from edge_runtime.line_reader import History
from edge_runtime.loop import EdgeLoop
from edge_runtime.printing import AnswerPrinter, TextSettings
from edgespec.config import EdgeSettings, Request, Tactics
from edgespec.errors import UsageError
from edgespec.text import Codec
from edgespec.transport import DealerLink
from engines.drafters.ngram import NgramDrafter

PLAIN = "import sys; sys.modules['prompt_toolkit'] = None; from cli.main import main; main()"
WITHOUT = [sys.executable, "-c", PLAIN]
EDITING = [sys.executable, "-m", "edgespec"]
HAS_EDITING = importlib.util.find_spec("prompt_toolkit") is not None
needs_editing = pytest.mark.skipif(not HAS_EDITING, reason="prompt_toolkit is not installed")
BOTH = [
    pytest.param(WITHOUT, id="without-editing"),
    pytest.param(EDITING, id="with-editing", marks=needs_editing),
]
CTRL_C, CTRL_D, UP = "\x03", "\x04", "\x1b[A"


@pytest.fixture(scope="module")
def served(bundle):
    with cloud_process(bundle.folder) as process:
        yield process


class Terminal:
    """A program on a terminal of its own."""

    def __init__(self, command, folder):
        self.screen, theirs = pty.openpty()
        self.shown = ""
        self._theirs = theirs
        fcntl.ioctl(theirs, termios.TIOCSWINSZ, b"\x18\0\xff\0\0\0\0\0")
        self.before = termios.tcgetattr(theirs)
        environment = {"TERM": "xterm", "PROMPT_TOOLKIT_NO_CPR": "1", "XDG_CACHE_HOME": str(folder)}
        self.process = subprocess.Popen(
            command, stdin=theirs, stdout=theirs, stderr=theirs, start_new_session=True,
            env={**os.environ, **environment}, cwd=folder,
            preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
        )  # fmt: skip

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.kill()
        self.process.wait()
        os.close(self.screen)
        os.close(self._theirs)

    def until(self, words, seconds=20):
        """What is shown up to `words`, which are then taken away."""
        end = time.monotonic() + seconds
        while words not in self.shown:
            self._read(end - time.monotonic())
        before, _, self.shown = self.shown.partition(words)
        return before

    def drop_line(self, words):
        """Types Ctrl-C at the prompt until `words` are shown.

        Python's `input` misses a signal that comes between its prompt and its read.
        """
        for _ in range(4):
            self.type(CTRL_C)
            with contextlib.suppress(AssertionError):
                return self.until(words, 5)
        return self.until(words)

    def _read(self, seconds):
        assert select.select([self.screen], [], [], max(0.0, seconds))[0], self.shown
        text = os.read(self.screen, 65536).decode(errors="replace")
        self.shown += re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text)

    def more(self, characters):
        """Waits until that many characters are shown."""
        while len(self.shown) < characters:
            self._read(20)

    def type(self, text):
        os.write(self.screen, text.encode())

    def turn(self, text, words):
        """Types a line, and waits for `words`."""
        self.type(text + "\r")
        return self.until(words)

    def ends(self, code=0):
        assert self.process.wait(20) == code
        assert termios.tcgetattr(self._theirs) == self.before


def chat(program, bundle, endpoint, folder, *options):
    words = ["edge-run", str(bundle.folder), "--connect", endpoint, "--chat", "--drafter", "ngram"]
    return Terminal([*program, *words, "--max-tokens", "8", *options], folder)


FIGURES = "bytes sent"


@pytest.mark.parametrize("program", BOTH)
def test_turns_are_answered_with_those_before_them(program, bundle, served, tmp_path):
    with chat(program, bundle, served.endpoint, tmp_path, "--system", "short") as terminal:
        terminal.until(">")
        terminal.turn("the quick", FIGURES)
        terminal.turn("/nonsense", "there is no command /nonsense; /help lists the commands")
        assert "/system TEXT" in terminal.turn("/help", "Ctrl-C ends an answer")
        terminal.turn("/stats", FIGURES)
        terminal.turn("/system long", "the system message is set")
        terminal.turn("and the dog", FIGURES)
        terminal.turn("/save talk.json", "wrote the conversation to talk.json")
        terminal.turn("/save talk.json", "cannot write talk.json: File exists")
        terminal.turn("/save", "pass a file")
        terminal.turn("/clear", "the conversation is empty")
        terminal.turn("/system", "there is no system message now")
        terminal.turn("brown", FIGURES)
        terminal.turn("/save rest.json", "wrote")
        terminal.type("/exit\r")
        terminal.ends()
    long, rest = (json.loads((tmp_path / name).read_text()) for name in ("talk.json", "rest.json"))
    assert [message["role"] for message in long] == ["system", *["user", "assistant"] * 2]
    assert [message["role"] for message in rest] == ["user", "assistant"]
    with edgespec.connect(bundle, served.endpoint, drafter="ngram") as client:
        for messages in (long, rest, [{"role": "system", "content": "short"}, *long[1:3]]):
            assert client.chat(messages[:-1], max_tokens=8).text == messages[-1]["content"]


@pytest.mark.parametrize("program", BOTH)
def test_the_chat_outlives_its_cloud(program, bundle, tmp_path):
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        endpoint = f"tcp://127.0.0.1:{listener.getsockname()[1]}"
    options = ["--give-up", "3", "--max-tokens", "400"]
    with chat(program, bundle, endpoint, tmp_path, *options) as terminal:
        terminal.until("waiting for the cloud at")
        with cloud_process(bundle.folder, "--bind", endpoint) as process:
            terminal.until(">")
            terminal.turn("the quick", FIGURES)
            os.kill(process.pid, signal.SIGKILL)
        for _ in range(2):
            terminal.turn("and the dog", "waiting for the cloud at")
            terminal.until("has been silent for")
            terminal.until("press Enter to send the turn again")
        with cloud_process(bundle.folder, "--bind", endpoint) as process:
            terminal.turn("", FIGURES)
            os.kill(process.pid, signal.SIGSTOP)
            terminal.turn("brown", "waiting for the cloud at")
            terminal.type(CTRL_C)
            terminal.until("no answer was written; press Enter to send the turn again")
            os.kill(process.pid, signal.SIGCONT)
            terminal.turn("", FIGURES)
            terminal.turn("/save talk.json", "wrote")
        terminal.until(">")
        terminal.type(CTRL_D)
        terminal.ends()
    messages = json.loads((tmp_path / "talk.json").read_text())
    turns = [message["content"] for message in messages if message["role"] == "user"]
    assert turns[-1] == "brown"
    assert turns in (["the quick", "and the dog", "brown"], ["and the dog", "brown"], ["brown"])


@pytest.mark.parametrize("program", BOTH)
def test_ctrl_c_ends_the_answer_and_sigterm_the_chat(program, bundle, served, tmp_path):
    options = ["--max-tokens", "400", "--mode", "edge", "--lockstep", "--draft-length", "1"]
    with (
        emulated_link(served.endpoint) as slow,
        chat(program, bundle, slow.endpoint, tmp_path, *options) as terminal,
    ):
        slow.shape(LinkShape(rtt_ms=100))
        terminal.until(">")
        terminal.type("not sent")
        terminal.until("not sent")
        terminal.drop_line(">")
        terminal.type("the quick\r")
        terminal.until("quick")
        terminal.more(20)
        terminal.type(CTRL_C)
        terminal.until("interrupted")
        terminal.until(">")
        terminal.turn("/save talk.json", "wrote")
        terminal.process.send_signal(signal.SIGTERM)
        terminal.ends(143)
    user, assistant = json.loads((tmp_path / "talk.json").read_text())
    assert (user["content"], bool(assistant["content"])) == ("the quick", True)


def test_a_long_conversation_drops_its_oldest_turns(bundle, served, tmp_path):
    dogs = "dog " * (18000 // len(Codec(bundle).encode("dog " * 100)))
    with chat(WITHOUT, bundle, served.endpoint, tmp_path, "--system", "short") as terminal:
        terminal.until(">")
        terminal.turn("first " + dogs, FIGURES)
        terminal.turn("second " + dogs, FIGURES)
        terminal.turn("third " + dogs, "512 tokens; dropped the oldest turn of the conversation")
        terminal.until(FIGURES)
        terminal.turn("/save talk.json", "wrote")
        terminal.turn(dogs * 4, "shorten the prompt")
        assert "Enter" not in terminal.turn("", ">")
    system, second, _, third, answer = json.loads((tmp_path / "talk.json").read_text())
    assert (system["content"], answer["role"]) == ("short", "assistant")
    assert [second["content"], third["content"]] == [f"second {dogs}", f"third {dogs}"]


def test_a_busy_cloud_and_quiet(bundle, tmp_path):
    with cloud_process(bundle.folder, "--max-sessions", "1") as process:
        identity = DeviceIdentity.of(bundle, "another device")
        settings = EdgeSettings(tactics=Tactics("none"), patience=0.3, draft_length=1)
        with (
            closing(DealerLink(process.endpoint)) as link,
            chat(WITHOUT, bundle, process.endpoint, tmp_path) as terminal,
        ):
            loop = EdgeLoop.connect(link, NgramDrafter(), identity, settings)
            place = loop.write(loop.start(Request((5, 6), 300)))
            next(place)
            terminal.until(">")
            terminal.turn("the quick", "waiting for the cloud: all places are taken")
            place.close()
            terminal.until(FIGURES)
        with chat(WITHOUT, bundle, process.endpoint, tmp_path, "--quiet") as terminal:
            terminal.until(">")
            shown = terminal.turn("the quick", ">")
            assert len(shown.replace("the quick", "").strip()) <= 8
            terminal.turn("/stats", FIGURES)


@needs_editing
def test_a_paste_is_one_turn_and_the_history_is_kept(bundle, served, tmp_path):
    history = tmp_path / "edgespec" / "chat_history"
    with chat(EDITING, bundle, served.endpoint, tmp_path) as terminal:
        terminal.until(">")
        terminal.type("\x1b[200~/one\nthe quick\n\nfox\x1b[201~\r")
        terminal.until(FIGURES)
        terminal.turn("/save talk.json", "wrote")
        terminal.until(">")
        terminal.type(CTRL_D)
        terminal.ends()
    user, _ = json.loads((tmp_path / "talk.json").read_text())
    assert user["content"] == "/one\nthe quick\n\nfox"
    assert stat.S_IMODE(history.stat().st_mode) == 0o600
    assert History(history).load() == [user["content"], "/save talk.json"]
    with chat(EDITING, bundle, served.endpoint, tmp_path) as terminal:
        terminal.until(">")
        terminal.type(UP + UP + "es\r")
        terminal.until(FIGURES)
        terminal.turn("/save again.json", "wrote")
        terminal.type("/exit\r")
        terminal.ends()
    user, _ = json.loads((tmp_path / "again.json").read_text())
    assert user["content"] == "/one\nthe quick\n\nfoxes"


def test_a_chat_without_a_template_is_refused_at_once(tiny_bundle, tmp_path):
    with chat(WITHOUT, tiny_bundle, "tcp://127.0.0.1:9", tmp_path) as terminal:
        terminal.until("no chat template", 20)
        terminal.ends(2)


def test_a_failed_client_is_opened_again(bundle, served):
    opened = []

    def open_client():
        opened.append(edgespec.connect(bundle, served.endpoint, drafter="none"))
        return opened[-1]

    chat = Chat(open_client, TextSettings(None, max_tokens=4), AnswerPrinter(TextSettings(None)))
    chat.take("the quick")
    opened[0].close()
    chat.take("fox")
    assert [client.running for client in opened] == [False, True]
    assert [turn.prompt for turn in chat.turns] == ["the quick", "fox"]
    chat.close()


def test_the_history_survives_bad_lines_and_is_cut(tmp_path, monkeypatch):
    monkeypatch.setattr(line_reader, "HISTORY_ENTRIES_COUNT", 2)
    path = tmp_path / "new" / "history"
    history = History(path)
    assert history.load() == []
    for text in ("a", "two\nlines", "ü"):
        history.add(text)
    with path.open("ab") as file:
        file.write(b"\xff no string\n")
    path.chmod(0o644)
    assert history.load() == ["two\nlines", "ü"]
    assert path.read_text().count("\n") == 2
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_a_history_that_cannot_be_written_is_no_error(tmp_path):
    (tmp_path / "file").touch()
    history = History(tmp_path / "file" / "history")
    history.add("a")
    assert history.load() == []


def test_input_that_is_not_utf8(monkeypatch):
    def bad(_):
        raise UnicodeDecodeError("utf-8", b"\xff", 0, 1, "bad")

    monkeypatch.setattr("builtins.input", bad)
    with pytest.raises(UsageError, match="not UTF-8"):
        line_reader._plain_prompt()
