"""Names of connections: they cannot be predicted, taken over, or run into."""

import contextlib
import subprocess
import sys
import time

import pytest
import zmq

from edgespec.keys import make_keys, read_pair, read_public
from edgespec.peers import NameCounter, router_socket
from edgespec.policies import LinkLimits
from edgespec.protocol import VERSION, Hello, Ping, Pong, Welcome, pack, unpack
from edgespec.transport import RouterHub

HELLO = Hello(VERSION, "target", "tokenizer", "a device")
WELCOME = Welcome(VERSION, "target", "tokenizer", 8192, 32, [], 20.0, 1.0, 0.0, 0.0)


@contextlib.contextmanager
def hub_of(**options):
    hub = RouterHub("tcp://127.0.0.1:*", **options)
    try:
        yield hub
    finally:
        hub.close()


@contextlib.contextmanager
def dealer(hub, name=None, keys=None):
    """A connection that has said hello, with a name of its own choice."""
    with zmq.Context() as context, context.socket(zmq.DEALER) as socket:
        socket.linger = 0
        if name is not None:
            socket.routing_id = name
        if keys:
            server, (socket.curve_publickey, socket.curve_secretkey) = keys
            socket.curve_serverkey = server
        socket.connect(hub.endpoint)
        socket.send_multipart(pack(HELLO))
        yield socket


def received(hub, count=1, seconds=3.0):
    """Packets that come within some seconds: the first `count`."""
    found, end = [], time.monotonic() + seconds
    while len(found) < count and time.monotonic() < end:
        found += hub.receive(0.02)
    return found


def test_the_first_name_is_another_each_time():
    with zmq.Context() as context:
        firsts = set()
        for _ in range(4):
            socket, counter = router_socket(context)
            firsts.add(counter._first)
            socket.close()
    assert len(firsts) == 4


@pytest.mark.parametrize(
    ("name", "genuine"),
    [
        (b"\0" + (7).to_bytes(4, "big"), True),
        (b"\0" + (7 + 20 + 4096).to_bytes(4, "big"), True),
        (b"\0" + (7 + 20 + 4097).to_bytes(4, "big"), False),
        (b"\0" + (6).to_bytes(4, "big"), False),
        (b"robot", True),
        (b"\0abcdef", True),
    ],
)
def test_a_name_beyond_the_counter_is_no_genuine_one(name, genuine):
    assert NameCounter(7).genuine(name, 20) is genuine


def test_the_counter_may_wrap_around():
    counter = NameCounter((1 << 32) - 3)
    assert counter.genuine(b"\0" + (2).to_bytes(4, "big"), 8)


def test_a_connection_with_a_name_that_the_counter_would_reach_is_cut():
    with hub_of() as hub, dealer(hub) as device:
        ((peer, _),) = received(hub)
        ahead = (hub._names._first + 100_000) % (1 << 32)
        with dealer(hub, b"\0" + ahead.to_bytes(4, "big")):
            assert not received(hub, seconds=0.5)
            assert hub._guard.cut_count == 1
        assert hub.send(peer, WELCOME) is None
        assert device.poll(3000) and isinstance(unpack(device.recv_multipart()), Welcome)


def test_another_connection_with_the_same_name_receives_nothing_of_the_first():
    with hub_of() as hub:
        with dealer(hub) as device:
            ((victim, _),) = received(hub)
            name = hub._peers.get(victim).name
            assert hub.send(victim, WELCOME) is None and device.poll(3000)
        end = time.monotonic() + 5
        while hub._peers._by_id[victim].connected and time.monotonic() < end:
            time.sleep(0.01)  # the cloud's side of the connection closes
        with dealer(hub, name) as thief:
            received(hub)
            assert hub.send(victim, WELCOME) == "gone" and not thief.poll(300)


def test_another_key_with_the_same_name_is_another_peer(tmp_path):
    cloud, cloud_secret = make_keys(tmp_path, "cloud")
    server = read_public(cloud)
    one, two = (read_pair(make_keys(tmp_path, name)[1]) for name in ("one", "two"))
    with hub_of(secret_key=cloud_secret) as hub:
        with dealer(hub, keys=(server, one)):
            ((victim, _),) = received(hub)
            name = hub._peers.get(victim).name
        end = time.monotonic() + 5
        while hub._peers._by_id[victim].connected and time.monotonic() < end:
            time.sleep(0.01)
        with dealer(hub, name, (server, two)) as thief:
            ((other, _),) = received(hub)
            assert other != victim and hub.owner(other) == two[0]
            assert hub.send(victim, WELCOME) == "gone"
            assert hub.send(other, Pong(5, 0.0)) is None
            assert thief.poll(3000) and unpack(thief.recv_multipart()) == Pong(5, 0.0)
            assert not thief.poll(300)


def test_the_last_packets_of_a_closed_connection_are_its_own():
    with hub_of() as hub:
        with dealer(hub) as device:
            ((peer, _),) = received(hub)
            device.linger = 1000
            device.send_multipart(pack(Ping(7)))
        end = time.monotonic() + 5
        while hub._peers._by_id[peer].connected and time.monotonic() < end:
            time.sleep(0.01)
        assert hub.send(peer, WELCOME) == "gone"
        assert [(who, unpack(packet)) for who, packet in received(hub)] == [(peer, Ping(7))]


def test_a_key_that_was_removed_before_its_first_packet_is_not_served(tmp_path):
    cloud, cloud_secret = make_keys(tmp_path, "cloud")
    public, secret = make_keys(tmp_path, "robot")
    folder = tmp_path / "clients"
    folder.mkdir()
    listed = folder / public.name
    listed.write_bytes(public.read_bytes())
    with hub_of(secret_key=cloud_secret, clients=folder) as hub, zmq.Context() as context:
        socket = context.socket(zmq.DEALER)
        socket.linger = 0
        socket.curve_publickey, socket.curve_secretkey = read_pair(secret)
        socket.curve_serverkey = read_public(cloud)
        monitor = socket.get_monitor_socket(zmq.EVENT_HANDSHAKE_SUCCEEDED)
        socket.connect(hub.endpoint)
        assert monitor.poll(5000)
        listed.unlink()
        while not hub.take_revoked():
            time.sleep(0.02)
        socket.send_multipart(pack(HELLO))
        assert not received(hub, seconds=0.5) and hub._guard.cut_count >= 1
        socket.disable_monitor()
        monitor.close()
        socket.close()


def test_one_key_has_a_bounded_number_of_connections(tmp_path):
    cloud, cloud_secret = make_keys(tmp_path, "cloud")
    names = "one", "two"
    pairs = {name: read_pair(make_keys(tmp_path, name)[1]) for name in names}
    limits = LinkLimits(connections_per_key=3)
    server = read_public(cloud)
    with (
        hub_of(secret_key=cloud_secret, limits=limits) as hub,
        contextlib.ExitStack() as stack,
    ):
        many = []
        for name in ("two", *["one"] * 5):
            many.append(stack.enter_context(dealer(hub, keys=(server, pairs[name]))))
            ((peer, _),) = received(hub)
            assert hub.send(peer, WELCOME) is None
        assert hub._guard.cut_count == 2
        assert many[0].poll(3000)
        many[0].recv_multipart()
        many[0].send_multipart(pack(Ping(3)))
        assert any(unpack(packet) == Ping(3) for _, packet in received(hub))


@pytest.mark.parametrize("kind", ["nowhere", "fifo", "huge"])
def test_what_is_no_key_file_does_not_stop_the_reading_of_the_folder(tmp_path, kind):
    import os

    from edgespec.keys import ClientFolder

    folder = tmp_path / "clients"
    folder.mkdir()
    public, _ = make_keys(tmp_path, "robot")
    listed = folder / public.name
    listed.write_bytes(public.read_bytes())
    clients = ClientFolder(folder, interval_s=30)
    try:
        odd = folder / "odd.key"
        if kind == "nowhere":
            odd.symlink_to(tmp_path / "none")
        elif kind == "fifo":
            os.mkfifo(odd)
        else:
            odd.write_bytes(bytes(1 << 20))
        clients.refresh()
        assert clients.name(read_public(public)) == "robot"
        listed.unlink()
        clients.refresh()
        assert clients.take_revoked() == {read_public(public)}
    finally:
        clients.close()


ABORTING = """
import socket, sys, zmq
from edgespec.transport import RouterHub
hub = RouterHub("tcp://127.0.0.1:*")
port = int(hub.endpoint.rpartition(":")[2])
context = zmq.Context()
thief = context.socket(zmq.DEALER)
thief.linger = 0
thief.routing_id = bytes([0]) + (0x6B8B4567 + 20).to_bytes(4, "big")
thief.connect(hub.endpoint)
hub.receive(0.3)
for _ in range(40):
    dealer = context.socket(zmq.DEALER)
    dealer.linger = 0
    dealer.connect(hub.endpoint)
    dealer.send(b"")
    hub.receive(0.1)
    dealer.close()
print("alive")
"""


def test_a_name_that_an_unseeded_counter_would_reach_ends_nothing():
    done = subprocess.run(
        [sys.executable, "-c", ABORTING], capture_output=True, text=True, timeout=60
    )
    assert done.stdout == "alive\n", done.stderr
