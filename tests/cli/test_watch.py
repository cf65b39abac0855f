"""`edgespec top` on a terminal, and its addresses."""

import os
import pty
import select
import subprocess
import sys
import termios

import pytest

from cli.watch import fetch, status_url
from edgespec.errors import LinkError, UsageError

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
