"""`edgespec top` on a terminal, and its addresses."""

import json
import os
import pty
import select
import socket
import subprocess
import sys
import termios
import threading
import time
from contextlib import contextmanager, suppress

import pytest
from click.testing import CliRunner

from cli.main import main
from cli.watch import fetch, status_url
from edgespec.errors import LinkError, UsageError
from edgespec.plain_text import plain
from edgespec.policies import StatusPolicy

NO_CLOUD = "http://127.0.0.1:9"


@pytest.mark.parametrize("key", [b"q", b"xQ", b"\x03"])
def test_a_key_ends_the_view_and_the_terminal_is_as_before(key):
    ours, theirs = pty.openpty()
    before = termios.tcgetattr(theirs)
    command = [sys.executable, "-m", "edgespec", "top", "--connect", NO_CLOUD, "--interval", "60"]
    with subprocess.Popen(
        command, stdin=theirs, stdout=theirs, stderr=theirs, start_new_session=True,
        env={**os.environ, "TERM": "xterm"},
        preexec_fn=lambda: os.close(os.open(os.ttyname(0), os.O_RDWR)),
    ) as process:  # fmt: skip
        shown = b""
        while b"q ends this view" not in shown:
            assert select.select([ours], [], [], 20)[0], shown
            shown += os.read(ours, 4096)
        assert b"no cloud answers" in shown
        os.write(ours, key)
        try:
            assert process.wait(20) == 0
        finally:
            process.kill()
    assert termios.tcgetattr(theirs) == before
    os.close(ours)
    os.close(theirs)


@pytest.mark.parametrize("connect", ["localhost:5556", "http://localhost:5556/", "10.0.0.1:1"])
def test_addresses(connect):
    assert status_url(connect) == f"http://{connect.removeprefix('http://').rstrip('/')}"


@pytest.mark.parametrize("connect", ["", "tcp://here:1", "http://", "here:there"])
def test_what_is_no_address(connect):
    with pytest.raises(UsageError, match="is no address"):
        status_url(connect)


def test_no_cloud():
    with pytest.raises(LinkError, match=r"no cloud answers at http://127\.0\.0\.1:9"):
        fetch(NO_CLOUD)


def reply(**changes):
    body = json.dumps({"target": "t", "state": "ready", **changes}).encode()
    return b"HTTP/1.0 200 OK\r\n\r\n" + body


@contextmanager
def served(*parts, pause_s=0.0, endless=False):
    """URL of a port that sends the parts to who connects, the last one again and again."""

    def serve():
        with suppress(OSError), listener.accept()[0] as connection:
            connection.recv(4096)
            for part in parts:
                connection.sendall(part)
            while endless:
                connection.sendall(parts[-1])
                time.sleep(pause_s)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=serve)
        thread.start()
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        thread.join(20)
        assert not thread.is_alive()


def test_a_reply():
    with served(reply(rate=5.0)) as url:
        assert fetch(url).rate == 5.0


START = b"HTTP/1.0 200 OK\r\n"
REFUSED = {
    "no HTTP": (b"SSH-2.0-OpenSSH\r\n", "not HTTP, or not complete"),
    "nothing": (b"", "not HTTP, or not complete"),
    "cut": (START + b"Content-Length: 500\r\n\r\n{}", "not HTTP, or not complete"),
    "chunks": (
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n", "not HTTP, or not complete"
    ),
    "status line": (b"HTTP/1.0 200 " + b"a" * 70_000 + b"\r\n\r\n", "not HTTP, or not complete"),
    "redirect": (b"HTTP/1.0 302 x\r\nLocation: file:///etc/passwd\r\n\r\n", "it says 302"),
    "no JSON": (START + b"\r\n<html>", "of this edgespec: JSON is malformed"),
    "deep": (START + b'\r\n{"x":' + b"[" * 200_000, "of this edgespec: maximum recursion"),
    "no UTF-8": (START + b'\r\n{"target":"\xff"}', "of this edgespec: "),
    "integer": (reply(memory_used=10**400), "of this edgespec: Expected `int` <="),
    "joules": (reply(energy={"joules": 1.0, "tokens": 10**400}), "Expected `int` <="),
    "negative": (reply(evictions=-1), "of this edgespec: Expected `int` >= 0"),
    "infinite": (START + b'\r\n{"target":"t","state":"ready","rate":1e400}', "Number out of"),
    "escapes": (reply(state="\x1b[2J"), "Invalid enum value"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_no_reply_of_a_cloud_is_one_sentence(case):
    content, words = REFUSED[case]
    with served(content) as url, pytest.raises(LinkError, match="is no cloud's status") as caught:
        fetch(url)
    assert words in str(caught.value) and str(caught.value) == plain(str(caught.value))


@pytest.mark.parametrize("start", [START, START + b"\r\n"])
def test_a_reply_has_one_deadline_with_its_headers(start):
    began = time.monotonic()
    with served(start, b"X: 1\r\n", pause_s=0.05, endless=True) as url, pytest.raises(
        LinkError, match=r"no complete reply within 0\.3 s"
    ):  # fmt: skip
        fetch(url, StatusPolicy(reply_s=0.3))
    assert time.monotonic() - began < 5


@pytest.mark.parametrize("start", [START, START + b"\r\n"])
def test_a_long_reply_is_not_read_to_its_end(start):
    with served(start, b"X: 1\r\n" * 9000, endless=True) as url, pytest.raises(
        LinkError, match="longer than 1000000 bytes"
    ):  # fmt: skip
        fetch(url, StatusPolicy(reply_bytes=1_000_000))


def test_the_command_ends_with_a_sentence():
    with served(REFUSED["deep"][0]) as url:
        result = CliRunner().invoke(main, ["top", "--connect", url, "--once"])
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr.startswith("edgespec: http://") and result.stderr.count("\n") == 1
