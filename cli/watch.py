"""`edgespec top`: asks a cloud's status address again and again, and shows the answers."""

from __future__ import annotations

import contextlib
import http.client
import io
import os
import select
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from urllib.parse import urlsplit

import msgspec
from rich.console import Console, Group
from rich.live import Live
from rich.text import Text

from cli.fleet_view import view
from edgespec.errors import LinkError, UsageError
from edgespec.fleet import Fleet, decode
from edgespec.plain_text import plain
from edgespec.policies import StatusPolicy

DEFAULT = StatusPolicy()
LONGEST_ERROR = 200
"""Characters of what is wrong with a reply, which may quote it."""
BLOCK_BYTES = 1 << 16
"""Bytes of a reply that are read at once."""
PIPE_COLUMNS = 150
"""Width of the view in a pipe or a file."""
END_KEYS = frozenset(b"qQ\x03")
"""Keys that end the view; the last is Ctrl-C where the terminal sends it as a character."""
KEYS_AT_ONCE = 64


def watch(connect: str, *, once: bool, as_json: bool, interval_s: float) -> None:
    """Shows the cloud until interrupted, or once.

    Raises `UsageError` for a malformed address and, except in the full-screen view, `LinkError` if
    no cloud answers.
    """
    url = status_url(connect)
    if as_json or once or not sys.stdout.isatty():
        _print_views(url, once=once, as_json=as_json, interval_s=interval_s)
        return
    with contextlib.suppress(KeyboardInterrupt), _single_keys(), Live(
        screen=True, auto_refresh=False
    ) as live:  # fmt: skip
        while True:
            live.update(_screen(url, live.console), refresh=True)
            if _ended(interval_s):
                return


def _screen(url: str, console: Console) -> Group:
    keys = Text("q ends this view", style="dim")
    try:
        return Group(view(fetch(url), console, console.height - 1), keys)
    except LinkError as error:
        return Group(Text(f"{error}; trying again", style="red"), keys)


@contextlib.contextmanager
def _single_keys() -> Iterator[None]:
    """Delivers keys without waiting for Enter, and without echo, while the block runs."""
    if not sys.stdin.isatty():
        yield
        return
    import termios
    import tty

    before = termios.tcgetattr(sys.stdin)
    try:
        tty.setcbreak(sys.stdin)
        yield
    finally:
        termios.tcsetattr(sys.stdin, termios.TCSADRAIN, before)


def _ended(interval_s: float) -> bool:
    """Waits for `interval_s` seconds; returns True early if a key ends the view."""
    end = time.monotonic() + interval_s
    while (left := end - time.monotonic()) > 0:
        if not sys.stdin.isatty():
            time.sleep(left)
        elif select.select([sys.stdin], [], [], left)[0]:
            keys = os.read(sys.stdin.fileno(), KEYS_AT_ONCE)
            if not keys or END_KEYS.intersection(keys):
                return True
    return False


def _print_views(url: str, *, once: bool, as_json: bool, interval_s: float) -> None:
    while True:
        fleet = fetch(url)
        if as_json:
            print(msgspec.json.encode(fleet).decode(), flush=True)
        else:
            on_terminal = sys.stdout.isatty()
            console = Console() if on_terminal else Console(width=PIPE_COLUMNS)
            console.print(view(fleet, console, console.height if on_terminal else None))
        if once:
            return
        time.sleep(interval_s)


def fetch(url: str, policy: StatusPolicy = DEFAULT) -> Fleet:
    """The state of the cloud now. Raises `LinkError`."""
    no_port = f"{url} is no cloud's status port"
    try:
        content = _received(url, policy)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        if isinstance(error, TimeoutError):
            reason = f"no complete reply within {policy.reply_s:g} s"
        raise LinkError(
            f"no cloud answers at {url} ({reason}); was it started with --status?", retryable=True
        ) from error
    if len(content) > policy.reply_bytes:
        raise LinkError(f"{no_port}: its reply is longer than {policy.reply_bytes} bytes")
    try:
        with http.client.HTTPResponse(_Received(content)) as reply:  # type: ignore[arg-type]
            reply.begin()
            if reply.status != http.client.OK:
                raise LinkError(f"{no_port}: it says {reply.status}")
            return decode(reply.read())
    except http.client.HTTPException as error:
        raise LinkError(f"{no_port}: its reply is not HTTP, or not complete") from error
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        reason = plain(str(error), LONGEST_ERROR)
        raise LinkError(f"{no_port} of this edgespec: {reason}") from error


def _received(url: str, policy: StatusPolicy) -> bytes:
    """All bytes of the reply to `GET url/fleet`, or of a longer one some more than are allowed.

    Raises `OSError` without a connection or a complete reply in time, and `ValueError` for a URL
    that cannot be asked for. One deadline holds for all reads; http.client has one for each.
    """
    end_s = time.monotonic() + policy.reply_s
    parts = urlsplit(url)
    scheme = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
    try:
        connection = scheme(parts.hostname or "", parts.port, timeout=policy.reply_s)
        with contextlib.closing(connection):
            connection.request("GET", f"{parts.path}/fleet", headers={"Connection": "close"})
            content = bytearray()
            while len(content) <= policy.reply_bytes:
                if (left_s := end_s - time.monotonic()) <= 0:
                    raise TimeoutError
                connection.sock.settimeout(left_s)
                block = connection.sock.recv(BLOCK_BYTES)
                if not block:
                    break
                content += block
            return bytes(content)
    except http.client.InvalidURL as error:
        raise ValueError(str(error)) from error


@dataclass(frozen=True)
class _Received:
    """Bytes that came from a socket, as `HTTPResponse` reads them."""

    content: bytes

    def makefile(self, mode: str) -> io.BytesIO:
        del mode
        return io.BytesIO(self.content)


def status_url(connect: str) -> str:
    """The URL of `HOST:PORT` or of a URL. Raises `UsageError` for anything else."""
    url = (connect if "://" in connect else f"http://{connect}").rstrip("/")
    try:
        parts = urlsplit(url)
        if parts.scheme in ("http", "https") and parts.hostname and parts.port != 0:
            return url
    except ValueError:
        pass
    raise UsageError(f"{connect!r} is no address; write http://HOST:PORT, as --status has it")
