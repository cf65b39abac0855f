"""What the status port says, and when."""

import contextlib
import json
import socket
import threading
import time
import urllib.error
import urllib.request

import msgspec
import pytest

from cloud_runtime.service import Identity, Service
from cloud_runtime.status import server as module
from cloud_runtime.status.server import (
    SNAPSHOT_INTERVAL_S,
    STUCK_S,
    Status,
    StatusServer,
)
from edgespec.allowed_hosts import AllowedHosts
from edgespec.config import CloudSettings
from edgespec.errors import LinkError, UsageError
from edgespec.fleet import Fleet
from edgespec.protocol import VERSION, Hello, Open, Terms, pack
from edgespec.sampling import Sampling
from edgespec.session import alias
from engines.toy import ToyEngine

SECRET = bytes(16)

HELLO = Hello(VERSION, "t", "k", "robot", "cpu-int8", "a board")


class Clock:
    now = 100.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def status(clock):
    return Status("a target", clock)


@pytest.fixture
def service():
    settings = CloudSettings(kv_memory=1 << 20)
    service = Service(Identity("t", "k", ()), ToyEngine(), settings)
    service.receive(b"a", pack(HELLO), 0.0)
    terms = Terms(drafting=False, target_rate=30.0)
    service.receive(b"a", pack(Open(17, SECRET, 3, 20, Sampling(), [], terms, [1, 2, 3])), 0.0)
    return service


def said(status, path):
    reply = status.reply(path)
    return reply.code, reply.body.decode().strip()


def fleet(status):
    return msgspec.json.decode(status.reply("/fleet").body, type=Fleet)


def step(service, now):
    batch = service.stepping.next(now)
    for each in service.stepping._engine.run(batch.rows):
        if each.final:
            service.stepping.commit(batch, each.choices, now)
    service.stepping.learn(batch, 0.02)


def test_loading_then_ready_then_draining(status, service, clock):
    assert said(status, "/health/ready") == (503, "the cloud is loading")
    clock.now += 1000
    assert said(status, "/health") == (200, "loading"), "a large model takes its time"
    assert status.reply("/metrics").code == 200
    status.listening(service, "tcp://here:1")
    assert said(status, "/health/ready") == (200, "ready")
    service.drain()
    clock.now += 1
    status.turned(service, 0.0)
    assert said(status, "/health/ready") == (503, "the cloud is draining")
    assert said(status, "/health")[0] == 200
    assert fleet(status).uptime == 1001
    assert said(status, "/nowhere")[0] == 404


def test_a_loop_that_does_not_turn_is_not_alive(status, service, clock):
    status.listening(service, "tcp://here:1")
    status.turned(service, 0.0)
    clock.now += STUCK_S + 1
    for path in ("/health", "/health/ready"):
        assert said(status, path) == (503, "the loop has not turned for 31 s")
    status.turned(service, 0.0)
    assert said(status, "/health/ready")[0] == 200


def test_a_snapshot_stands_still_and_is_made_now_and_then(status, service, clock):
    status.listening(service, "tcp://here:1")
    before = status.snapshot
    step(service, 0.0)
    clock.now += SNAPSHOT_INTERVAL_S / 2
    status.turned(service, 1.0)
    assert status.snapshot is before and before.tally.tokens == 0
    clock.now += SNAPSHOT_INTERVAL_S
    status.turned(service, 1.0)
    assert status.snapshot.tally.tokens == 1


def test_the_fleet_shows_sessions_and_devices(status, service, clock):
    status.listening(service, "tcp://here:1")
    assert fleet(status).sessions[0].state == "waiting"
    for number in range(11):
        step(service, 1.0 + number / 10)
    clock.now += 2.0
    status.turned(service, 2.0)
    shown = fleet(status)
    (session,), (device,) = shown.sessions, shown.devices
    assert (session.session, session.device, session.hardware) == (alias(17), "robot", "a board")
    assert (session.mode, session.state, session.tokens) == ("cloud", "running", 11)
    assert session.rate == pytest.approx(10.0) and session.target_rate == 30.0
    assert (device.name, device.sessions, device.away) == ("robot", 1, "")
    assert shown.step == pytest.approx(0.02) and shown.rows == 1
    assert shown.memory_used > 0 and shown.memory_limit == 1 << 20
    service.lost(b"a", "unread", 2.0)
    clock.now += 1
    status.turned(service, 2.0)
    shown = fleet(status)
    assert shown.sessions[0].state == "away"
    assert (shown.devices[0].away, shown.devices[0].troubles) == ("unread", {"unread": 1})


def test_over_http(status, service):
    server = StatusServer("127.0.0.1:0", status)
    try:
        with pytest.raises(urllib.error.HTTPError) as refused:
            urllib.request.urlopen(f"{server.url}/health/ready")
        assert refused.value.code == 503 and b"loading" in refused.value.read()
        refused.value.close()
        status.listening(service, "tcp://here:1")
        with urllib.request.urlopen(f"{server.url}/metrics?x=1") as reply:
            assert b'edgespec:ready{model_name="a target"} 1.0' in reply.read()
        with urllib.request.urlopen(f"{server.url}/fleet") as reply:
            assert json.load(reply)["state"] == "ready"
        with pytest.raises(LinkError, match="cannot serve the status"):
            StatusServer(server.url.removeprefix("http://"), status)
    finally:
        server.close()


@pytest.mark.parametrize("address", ["", "here", "here:there", "http://x:1", "x:99999", "x:1/y"])
def test_what_is_no_address_is_refused(address, status):
    with pytest.raises(UsageError, match="HOST:PORT"):
        StatusServer(address, status)


@pytest.mark.parametrize(
    ("bound", "header", "admitted"),
    [
        ("127.0.0.1", "127.0.0.1:5556", True),
        ("127.0.0.1", "LocalHost", True),
        ("127.0.0.1", "[::1]:5556", True),
        ("127.0.0.1", "status.example:5556", True),
        ("10.0.0.5", "10.0.0.5:5556", True),
        ("10.0.0.5", "10.0.0.6:5556", False),
        ("127.0.0.1", "evil.example:5556", False),
        ("127.0.0.1", "127.0.0.1.evil.example", False),
        ("127.0.0.1", "127.0.0.1@evil.example", False),
        ("127.0.0.1", "evil.example:80@127.0.0.1", False),
        ("127.0.0.1", "a@localhost", False),
        ("127.0.0.1", "localhost/?", False),
        ("127.0.0.1", "localhost?.evil.example", False),
        ("127.0.0.1", "localhost#.evil.example", False),
        ("127.0.0.1", "localhost\t", False),
        ("127.0.0.1", "", False),
        ("127.0.0.1", "[", False),
        ("0.0.0.0", "192.168.1.7:5556", True),
        ("::", "[fd00::7]", True),
        ("0.0.0.0", "evil.example", False),
    ],
)
def test_the_hosts_that_may_be_addressed(bound, header, admitted):
    assert AllowedHosts(bound, ["Status.example"]).admits(header) is admitted


@pytest.mark.parametrize("path", ["/fleet", "/metrics", "/health", "/health/ready"])
def test_a_foreign_host_gets_403_and_one_sentence(status, path):
    server = StatusServer("127.0.0.1:0", status)
    try:
        request = urllib.request.Request(server.url + path, headers={"Host": "evil.example"})
        with pytest.raises(urllib.error.HTTPError) as caught:
            urllib.request.urlopen(request)
        assert caught.value.code == 403
        assert b"--status-host NAME" in caught.value.read()
        caught.value.close()
    finally:
        server.close()


@contextlib.contextmanager
def unfinished_requests(server, count):
    """Connections that have sent half a request."""
    host, port = server.url.removeprefix("http://").split(":")
    with contextlib.ExitStack() as stack:
        clients = []
        for _ in range(count):
            client = stack.enter_context(socket.create_connection((host, int(port)), timeout=5.0))
            client.sendall(b"GET /health HTTP/1.1\r\nX: ")
            clients.append(client)
        yield clients


def cut(client):
    """True once the server has closed the connection."""
    try:
        while client.recv(4096):
            pass
    except TimeoutError:
        return False
    except ConnectionError:
        pass
    return True


def test_many_unfinished_requests_hold_few_threads_and_keep_nobody_out(status):
    server = StatusServer("127.0.0.1:0", status)
    before = threading.active_count()
    try:
        with unfinished_requests(server, 3 * module.REQUESTS_COUNT) as clients:
            assert all(cut(client) for client in clients[: module.REQUESTS_COUNT])
            assert threading.active_count() - before <= module.REQUESTS_COUNT
            with urllib.request.urlopen(f"{server.url}/health", timeout=5.0) as reply:
                assert reply.status == 200
    finally:
        server.close()


def test_a_request_that_drips_is_cut_at_the_deadline(status, monkeypatch):
    monkeypatch.setattr(module, "CLIENT_TIMEOUT_S", 1.0)
    server = StatusServer("127.0.0.1:0", status)
    try:
        with unfinished_requests(server, 1) as (client,):
            began = time.monotonic()
            client.settimeout(0.2)
            while not cut(client):
                assert time.monotonic() - began < 5.0
                with contextlib.suppress(ConnectionError):
                    client.sendall(b"a")
            assert time.monotonic() - began > 0.8
    finally:
        server.close()
