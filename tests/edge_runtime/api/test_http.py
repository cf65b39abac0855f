"""Connections that send nothing, too little, or do not read."""

import asyncio
import contextlib
import errno
import socket
import sys
import threading
import time

import pytest
import uvicorn

from edge_runtime.api import http
from edge_runtime.api.http import Exhaustion, bounded_protocol
from edgespec.policies import ApiPolicy
from tests.edge_runtime.api.test_serve import started

GET = b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n"


async def echo(scope, receive, send):
    """Replies with as many bytes as the path says, after the body has come."""
    if scope["type"] != "http":
        return
    while (await receive()).get("more_body"):
        pass
    size = int(scope["path"][1:] or 2)
    header = [(b"content-length", str(size).encode())]
    await send({"type": "http.response.start", "status": 200, "headers": header})
    await send({"type": "http.response.body", "body": b"ok" * (size // 2)})


@contextlib.contextmanager
def server(**bounds):
    """The address of a server with these bounds."""
    config = uvicorn.Config(
        echo, http=bounded_protocol(ApiPolicy(**bounds)), ws="none", log_config=None, lifespan="off"
    )
    listening = socket.create_server(("127.0.0.1", 0))
    running = uvicorn.Server(config)
    thread = threading.Thread(target=running.run, kwargs={"sockets": [listening]})
    thread.start()
    try:
        yield listening.getsockname()
    finally:
        running.should_exit = True
        thread.join()
        listening.close()


def connected(address, sent=b""):
    connection = socket.create_connection(address, timeout=10)
    connection.sendall(sent)
    return connection


def replied(connection):
    """Whether a whole reply comes."""
    received = b""
    while data := connection.recv(1000):
        received += data
        if received.endswith(b"ok"):
            return b"200 OK" in received
    return False


def ended(connection):
    """Whether the server ends the connection; True at once, False after half a second."""
    connection.settimeout(0.5)
    try:
        while connection.recv(100):
            pass
    except ConnectionResetError:
        return True
    except TimeoutError:
        return False
    return True


@pytest.mark.parametrize("sent", [b"", b"GET / HTTP/1.1\r\n", GET[:-2]])
def test_a_connection_without_a_request_ends(sent):
    with server(header_s=0.2) as address, connected(address, sent) as silent:
        assert ended(silent)


def test_bytes_that_trickle_do_not_keep_a_connection():
    with server(header_s=0.4) as address, connected(address) as slow:
        began = time.monotonic()
        with contextlib.suppress(OSError):
            while time.monotonic() - began < 5:
                slow.sendall(b"G")
                time.sleep(0.05)
        assert time.monotonic() - began < 2


def test_a_kept_connection_ends_unless_the_next_request_comes():
    with server(header_s=0.2, idle_s=0.5) as address, connected(address, GET) as kept:
        assert replied(kept)
        time.sleep(0.3)
        kept.sendall(GET)
        assert replied(kept)
        time.sleep(0.6)
        assert ended(kept)


def test_the_oldest_without_a_request_gives_way():
    begun = b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 2\r\n\r\n"
    with server(connections=3) as address, contextlib.ExitStack() as stack:
        serving = stack.enter_context(connected(address, begun))
        time.sleep(0.2)
        first, second, third = (stack.enter_context(connected(address)) for _ in range(3))
        assert ended(first)
        assert not ended(second) and not ended(third)
        serving.sendall(b"{}")
        assert replied(serving)


def test_if_all_have_a_request_the_new_one_gives_way():
    begun = b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 2\r\n\r\n"
    with server(connections=2) as address, contextlib.ExitStack() as stack:
        serving = [stack.enter_context(connected(address, begun)) for _ in range(2)]
        time.sleep(0.2)
        assert ended(stack.enter_context(connected(address)))
        for each in serving:
            each.sendall(b"{}")
            assert replied(each)


def test_a_client_that_does_not_read_is_cut(monkeypatch):
    monkeypatch.setattr(http, "STALLED_S", 0.3)
    request = b"GET /40000000 HTTP/1.1\r\nHost: localhost\r\n\r\n"
    with server() as address, connected(address, request) as unread:
        time.sleep(1.5)
        assert refuses(unread)


def refuses(connection):
    """Whether the server has ended a connection that is written to and not read."""
    try:
        for _ in range(20):
            connection.sendall(b"x")
            time.sleep(0.05)
    except (ConnectionResetError, BrokenPipeError):
        return True
    return False


def test_a_server_of_few_files_serves_in_spite_of_silent_connections(bundle, endpoint):
    serve = f"{sys.executable} -m edgespec serve {bundle.folder} --connect {endpoint}"
    with started(["bash", "-c", f"ulimit -n 256; exec {serve} --port 0"]) as (url, process):
        host, port = url.removeprefix("http://").removesuffix("/v1").split(":")
        with contextlib.ExitStack() as stack:
            for _ in range(400):
                stack.enter_context(connected((host, int(port))))
            health = GET.replace(b"/", b"/health", 1)
            asking = stack.enter_context(connected((host, int(port)), health))
            assert b"200 OK" in asking.recv(1000)
    assert not [line for line in process.log if "Traceback" in line]


def test_exhaustion_is_one_line_and_other_errors_are_not_hidden(caplog):
    loop, handler = asyncio.new_event_loop(), Exhaustion()
    full = {"message": "accept", "exception": OSError(errno.EMFILE, "Too many open files")}
    handler(loop, full)
    handler(loop, full)
    assert [record.getMessage() for record in caplog.records] == [
        "new connections must wait: Too many open files"
    ]
    handler(loop, {"message": "accept", "exception": OSError(errno.EIO, "broken")})
    assert len(caplog.records) == 2 and caplog.records[1].exc_info
    loop.close()
