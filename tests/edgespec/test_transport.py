"""The cloud's socket against devices in trouble."""

import contextlib
import socket
import subprocess
import sys
import time
from contextlib import contextmanager

import pytest
import zmq

from edgespec import transport
from edgespec.errors import LinkError
from edgespec.keys import make_keys
from edgespec.policies import LinkLimits
from edgespec.protocol import MAX_DRAFT, Ping, Verdict, unpack
from edgespec.transport import DealerLink, RouterHub

LIMITS = LinkLimits()
BROKEN_PEER = """
import socket, struct, sys, time
from edgespec import tcp
from edgespec.policies import LinkLimits
from edgespec.transport import RouterHub

ending, filled = sys.argv[1], int(sys.argv[2])
hub = RouterHub("tcp://127.0.0.1:*", limits=LinkLimits(probe_s=1.0, vanished_s=2.0))
peer = socket.create_connection(("127.0.0.1", int(hub.endpoint.rpartition(":")[2])))
null = b"NULL".ljust(20, bytes(1)) + bytes(32)
peer.sendall(bytes([255]) + bytes(8) + bytes([127, 3, 0]) + null)
received = b""
while len(received) < 64:
    received += peer.recv(64 - len(received))
ready = b"\\5READY" + b"\\x0bSocket-Type" + struct.pack(">I", 6) + b"DEALER"
peer.sendall(bytes([4, len(ready)]) + ready)
peer.recv(256)
ping = b"\\4\\7\\4PING" + bytes(2)
peer.sendall((b"\\0\\1a" * filled + ping) * (1000 // filled))
time.sleep(0.2)
if ending == "reset":
    peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    peer.close()
elif ending == "silence":
    tcp.end(peer.fileno())
elif ending == "cut":
    (file,) = hub._guard._connections
    hub._guard.cut(file, "a test")
time.sleep(3.5)  # longer than any probe
packets = 0
while received := hub.receive(0.5):
    packets += len(list(received))
connections = len(hub._guard._connections)
hub.close()
print(packets, connections)
"""


@contextmanager
def meeting(limits=LinkLimits()):
    hub = RouterHub("tcp://127.0.0.1:*", limits=limits)
    link = DealerLink(hub.endpoint)
    try:
        link.send(Ping(1))
        ((peer, packet),) = take(hub, 1)
        assert unpack(packet) == Ping(1)
        yield hub, link, peer
    finally:
        link.close()
        hub.close()


def take(hub, count):
    packets, end = [], time.monotonic() + 10
    while len(packets) < count and time.monotonic() < end:
        packets += hub.receive(0.5)
    return packets


def test_what_is_sent_to_nobody_is_said_to_be_gone():
    with meeting() as (hub, _, peer):
        assert hub.send(b"nobody", Ping(2)) == "gone"
        assert hub.send(peer, Ping(2)) is None


def test_a_device_that_closed_is_gone():
    with meeting() as (hub, link, peer):
        link.close()
        end = time.monotonic() + 10
        while (fate := hub.send(peer, Ping(2))) is None and time.monotonic() < end:
            time.sleep(0.01)
        assert fate == "gone"


def test_a_device_that_never_reads_costs_a_bounded_queue_and_nobody_waits():
    """What its kernel and its socket take in advance comes on top, and is bounded as well."""
    with meeting() as (hub, link, peer):
        link._socket.setsockopt(zmq.LINGER, 0)
        hub._socket.setsockopt(zmq.LINGER, 0)
        sent, small = 0, Verdict(1, 1, 1, 1, 1, 1, [7] * MAX_DRAFT)
        for _ in range(100_000):
            if (fate := hub.send(peer, small)) is not None:
                break
            sent += 1
        else:
            pytest.fail("it took everything")
        assert sent >= LIMITS.send_queue_packets
        assert fate == "unread"


def test_a_flooder_takes_its_share_of_a_poll_and_no_more():
    with meeting() as (hub, link, peer):
        loud = DealerLink(hub.endpoint)
        try:
            for number in range(20 * LIMITS.poll_packets):
                loud.send(Ping(number))
            time.sleep(0.2)
            for number in range(3):
                link.send(Ping(1000 + number))
            time.sleep(0.2)
            packets = hub.receive(0.5)
            assert len(packets) <= 2 * LIMITS.poll_packets
            assert [unpack(p).nonce for who, p in packets if who == peer] == [1000, 1001, 1002]
        finally:
            loud.close()


def test_a_poll_ends_in_time_whatever_waits():
    with meeting(LinkLimits(poll_s=0.0)) as (hub, link, _):
        for number in range(3):
            link.send(Ping(number))
        time.sleep(0.2)
        polls = [hub.receive(0.5) for _ in range(3)]
        assert [[unpack(packet).nonce for _, packet in poll] for poll in polls] == [[0], [1], [2]]


def test_a_flood_is_held_back_at_its_source():
    """The cloud's socket takes some in advance; the rest stays with whoever sends it."""
    unbounded = LinkLimits(hello_bytes=1 << 40, total_backlog_bytes=1 << 40)
    with (
        meeting(unbounded) as (hub, _, _),
        zmq.Context() as context,
        context.socket(zmq.DEALER) as loud,
    ):
        loud.setsockopt(zmq.LINGER, 0)
        loud.setsockopt(zmq.SNDHWM, 100)
        loud.setsockopt(zmq.SNDTIMEO, 1000)
        loud.connect(hub.endpoint)
        big, sent = b"x" * 500_000, 0
        with contextlib.suppress(zmq.Again):
            while sent < 10 * LIMITS.receive_queue_packets:
                loud.send(big)
                sent += 1
        assert 1 <= sent / LIMITS.receive_queue_packets < 4


@pytest.mark.parametrize("ending", ["reset", "silence", "cut"])
@pytest.mark.parametrize("filled", [200, 1000])
def test_a_connection_that_breaks_behind_a_full_queue_does_not_end_the_cloud(ending, filled):
    """libzmq asserts if it sees the break while a PING waits behind the queue."""
    command = [sys.executable, "-c", BROKEN_PEER, ending, str(filled)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr, done.stdout) == (0, "", "1000 0\n")


@pytest.mark.parametrize(
    ("endpoint", "address"),
    [
        ("tcp://127.0.0.1:*", ("127.0.0.1", 0)),
        ("tcp://*:5555", ("0.0.0.0", 5555)),
        ("tcp://[::1]:7", ("::1", 7)),
        ("tcp://localhost:7", ("", 0)),
        ("ipc:///tmp/socket", ("", 0)),
    ],
)
def test_addresses_that_are_listened_on_with_a_filter_from_the_start(endpoint, address):
    assert transport._address(endpoint) == address


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "[::1]", "*"])
def test_a_cloud_listens_by_any_kind_of_host(host, tmp_path):
    make_keys(tmp_path, "cloud")
    hub = RouterHub(f"tcp://{host}:*", tmp_path / "cloud.key_secret")
    port = hub.endpoint.rpartition(":")[2]
    reached = "127.0.0.1" if host == "*" else host
    link = DealerLink(f"tcp://{reached}:{port}", tmp_path / "cloud.key")
    try:
        link.send(Ping(1))
        assert len(take(hub, 1)) == 1
        with pytest.raises(LinkError, match="another program is listening"):
            RouterHub(f"tcp://{reached}:{port}", tmp_path / "cloud.key_secret")
    finally:
        link.close()
        hub.close()


def test_a_peer_of_an_older_zmtp_is_not_heard():
    hub = RouterHub("tcp://127.0.0.1:*")
    try:
        port = int(hub.endpoint.rpartition(":")[2])
        with socket.create_connection(("127.0.0.1", port)) as peer:
            peer.sendall(b"\x05\x00name\x03\x00hi")  # ZMTP 1: an identity and a frame
            end = time.monotonic() + 1.0
            while time.monotonic() < end:
                assert hub.receive(0.1) == []
        link = DealerLink(hub.endpoint)
        link.send(Ping(1))
        assert len(hub.receive(5.0)) == 1
        link.close()
    finally:
        hub.close()
