"""What a stranger's connection can cost, with the attacker's own bytes on a raw TCP socket."""

import contextlib
import os
import socket
import struct
import threading
import time

import pytest
import zmq

from edgespec import tcp
from edgespec.policies import LinkLimits
from edgespec.protocol import MAX_PACKET, VERSION, Close, Hello, Verdict, Welcome, pack, unpack
from edgespec.transport import DealerLink, RouterHub

SECRET = bytes(16)

GREETING = b"\xff" + bytes(8) + b"\x7f\x03\x00" + b"NULL".ljust(20, b"\0") + bytes(32)
READY = b"\x05READY\x0bSocket-Type" + struct.pack(">I", 6) + b"DEALER"
HELLO = Hello(VERSION, "target", "tokenizer", "a device")
WELCOME = Welcome(VERSION, "target", "tokenizer", 8192, 32, [], 20.0, 1.0, 0.0, 0.0)
PACKET_BYTES = 100_000


def resident_mb():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6


class Cloud:
    """A hub whose loop reads now and then, as one does between the steps of a model."""

    def __init__(self, **limits):
        self.hub = RouterHub(
            "tcp://127.0.0.1:*", packet_bytes=PACKET_BYTES, limits=LinkLimits(**limits)
        )
        self.address = ("127.0.0.1", int(self.hub.endpoint.rpartition(":")[2]))
        self.peak_mb = self.slowest_s = 0.0
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self):
        while not self._stopping.is_set():
            began = time.monotonic()
            for peer, packet in self.hub.receive(0.01):
                with contextlib.suppress(Exception):
                    if isinstance(unpack(packet), Hello):
                        self.hub.send(peer, WELCOME)
            self.slowest_s = max(self.slowest_s, time.monotonic() - began)
            self.peak_mb = max(self.peak_mb, resident_mb())
            time.sleep(0.02)

    @property
    def cuts(self):
        return self.hub._guard.cut_count

    def connect(self):
        raw = socket.create_connection(self.address, timeout=5)
        raw.sendall(GREETING)
        raw.sendall(b"\x04" + bytes([len(READY)]) + READY)
        heard = b""
        while b"Socket-Type" not in heard:  # before that, ZeroMQ takes no messages
            heard += raw.recv(4096)
        return raw

    def close(self):
        self._stopping.set()
        self._thread.join()
        self.hub.close()


@pytest.fixture
def cloud():
    clouds = []

    def build(**limits):
        clouds.append(Cloud(**limits))
        return clouds[-1]

    yield build
    for one in clouds:
        one.close()


def answers(link):
    link.send(HELLO)
    return any(isinstance(message, Welcome) for message in link.receive(5.0))


def flood(raw, chunk, seconds=1.0):
    """Sends until the connection is cut; True if it was."""
    end = time.monotonic() + seconds
    try:
        while time.monotonic() < end:
            raw.sendall(chunk)
    except OSError:
        return True
    return False


ENDLESS = b"\x03" + struct.pack(">Q", 60_000) + bytes(60_000)
"""A frame with the flag that another one follows."""
EMPTY = b"\x01\x00" * 50_000
"""Empty frames of one message."""


@pytest.mark.parametrize("chunk", [ENDLESS, EMPTY], ids=["endless", "empty"])
def test_a_message_that_never_ends_is_cut_before_memory_is_taken(cloud, chunk):
    one, before = cloud(), resident_mb()
    with one.connect() as raw:
        assert flood(raw, chunk)
    link = DealerLink(one.hub.endpoint)
    assert answers(link), "others are served"
    link.close()
    assert one.cuts == 1
    assert one.peak_mb - before < 60
    assert one.slowest_s < 1.0


def test_garbage_of_several_connections_waits_within_one_bound(cloud):
    one, before = cloud(total_backlog_bytes=4_000_000), resident_mb()
    raws = [one.connect() for _ in range(8)]
    garbage = b"\x02" + struct.pack(">Q", 90_000) + bytes(90_000)
    threads = [threading.Thread(target=flood, args=(raw, garbage)) for raw in raws]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for raw in raws:
        raw.close()
    assert one.cuts >= 1
    assert one.peak_mb - before < 60


def leave(one, data, seconds=3.0):
    """Connects, sends and closes, again and again; the number of connections that were made."""
    made, end = 0, time.monotonic() + seconds
    while time.monotonic() < end:
        with contextlib.suppress(OSError), socket.create_connection(one.address, 0.2) as raw:
            raw.settimeout(0.2)
            raw.sendall(GREETING + b"\x04" + bytes([len(READY)]) + READY)
            while b"Socket-Type" not in raw.recv(4096):
                pass
            raw.sendall(data)
            raw.shutdown(socket.SHUT_WR)
            made += 1
    return made


def test_what_closed_connections_leave_is_bounded_while_the_cloud_loads():
    hub = RouterHub("tcp://127.0.0.1:*", packet_bytes=PACKET_BYTES)
    one = Cloud.__new__(Cloud)
    one.address = ("127.0.0.1", int(hub.endpoint.rpartition(":")[2]))
    before = resident_mb()
    data = b"\x01\x00" * 30_000 + b"\x00\x00"  # a message of empty frames: 32 times as large here
    threads = [threading.Thread(target=leave, args=(one, data, 6.0)) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert resident_mb() - before < 400
    assert hub._guard._holding, "no more connections are taken"
    end = time.monotonic() + 60
    while hub._guard._holding and time.monotonic() < end:
        hub.receive(0.1)
    link = DealerLink(hub.endpoint)
    link.send(HELLO)
    packets = []
    while not packets and time.monotonic() < end:
        packets = hub.receive(0.1)
    assert packets, "once it has read what was left, devices connect"
    link.close()
    hub.close()


def test_nobody_is_cut_for_a_packet_of_a_connection_that_had_its_descriptor(cloud):
    one = cloud()
    junk = b"\x01\x00" * 65 + b"\x00\x00"
    leaving = threading.Thread(target=leave, args=(one, junk, 4.0))
    leaving.start()
    lost = tried = 0
    while leaving.is_alive():
        with one.connect() as raw:
            raw.settimeout(0.15)
            tried += 1
            try:
                lost += raw.recv(1) == b""
            except TimeoutError:
                continue
            except ConnectionError:
                lost += 1
    leaving.join()
    assert tried > 5 and lost == 0 and one.cuts > 0


def test_the_log_counts_cuts_that_come_in_numbers(cloud, caplog):
    caplog.set_level("INFO", "edgespec.cloud")
    one = cloud(connections=4)
    raws = [socket.create_connection(one.address) for _ in range(60)]
    end = time.monotonic() + 5
    while one.cuts < 56 and time.monotonic() < end:
        time.sleep(0.05)
    for raw in raws:
        raw.close()
    assert one.cuts >= 56
    assert len([line for line in caplog.messages if "is cut" in line]) < 8


def test_a_packet_larger_than_any_session_needs_ends_the_connection(cloud):
    one = cloud()
    with one.connect() as raw:
        raw.settimeout(5)
        with contextlib.suppress(OSError):
            raw.sendall(b"\x02" + struct.pack(">Q", MAX_PACKET) + bytes(MAX_PACKET))
        with contextlib.suppress(OSError):
            while raw.recv(4096):
                pass
    link = DealerLink(one.hub.endpoint)
    assert answers(link)
    link.close()


def test_silent_connections_leave_room_for_devices(cloud):
    one = cloud(connections=8)
    device = DealerLink(one.hub.endpoint)
    assert answers(device)
    silent = [socket.create_connection(one.address) for _ in range(30)]
    late = DealerLink(one.hub.endpoint)
    assert answers(late), "a device gets a place"
    assert answers(device), "one that is served keeps it"
    assert one.cuts >= 22
    for each in (*silent, device, late):
        each.close()


def test_a_connection_that_sends_no_hello_is_cut_in_time(cloud):
    one = cloud(hello_timeout_s=0.2)
    device = DealerLink(one.hub.endpoint)
    assert answers(device)
    with one.connect() as raw:
        raw.settimeout(5)
        began = time.monotonic()
        with contextlib.suppress(ConnectionError):
            while raw.recv(4096):
                pass
        assert time.monotonic() - began < 3
    time.sleep(0.3)
    assert answers(device), "a device that said hello stays"
    device.close()


def test_a_peer_whose_machine_vanishes_is_cut_and_a_silent_one_is_not(cloud):
    one = cloud(probe_s=1.0, vanished_s=2.5)
    device = DealerLink(one.hub.endpoint)
    assert answers(device)
    with one.connect() as raw:
        tcp.end(raw.fileno())  # from now on it takes nothing in, as if it was switched off
        end = time.monotonic() + 10
        while not one.cuts and time.monotonic() < end:
            time.sleep(0.1)
        assert one.cuts == 1
    assert answers(device)
    device.close()


def test_a_device_may_send_for_as_long_as_it_likes(cloud):
    one = cloud(backlog_bytes=0)
    link = DealerLink(one.hub.endpoint)
    assert answers(link)
    for _ in range(50):  # twice what may wait, in all
        for number in range(100):
            link.send(Close(number, SECRET))
        assert answers(link), "all that was sent before has been read"
    assert one.cuts == 0
    link.close()


def introduce(hub, raws):
    """The peers of raw connections, after a Hello of each."""
    header = pack(HELLO)[0]
    for raw in raws:
        raw.sendall(bytes([0, len(header)]) + header)
    peers, end = set(), time.monotonic() + 10
    while len(peers) < len(raws) and time.monotonic() < end:
        peers |= {peer for peer, _ in hub.receive(0.1)}
    assert len(peers) == len(raws)
    return peers


@pytest.fixture
def hub():
    hub = RouterHub("tcp://127.0.0.1:*", packet_bytes=PACKET_BYTES)
    yield hub
    hub._socket.setsockopt(zmq.LINGER, 0)
    hub.close()


VERDICT = Verdict(1, 0, 0, 0, 0, 0, [70_000] * 40_000)
"""A packet of 200 KB, as a Resume from the beginning asks for."""


def connect(hub):
    one = Cloud.__new__(Cloud)
    one.address = ("127.0.0.1", int(hub.endpoint.rpartition(":")[2]))
    return one.connect()


def test_each_of_many_deaf_peers_holds_a_megabyte(hub):
    raws = [connect(hub) for _ in range(40)]
    peers = introduce(hub, raws)
    before = resident_mb()
    for peer in peers:
        fates = [hub.send(peer, VERDICT) for _ in range(40)]
        assert fates[0] is None and fates[-1] == "unread"
    held = resident_mb() - before
    for raw in raws:
        raw.close()
    assert held < 1.3 * len(peers)


def test_a_peer_that_reads_again_is_served_again(hub):
    raw = connect(hub)
    (peer,) = introduce(hub, [raw])
    sent = 0
    for _ in range(100):  # 20 MB in all
        while hub.send(peer, VERDICT) == "unread":
            sent -= len(raw.recv(1 << 20))
        sent += len(pack(VERDICT)[0])
    assert sent < 5_000_000
    raw.close()


def test_connections_share_what_may_be_unread():
    limits = LinkLimits(total_unread_bytes=2_000_000)
    hub = RouterHub("tcp://127.0.0.1:*", packet_bytes=PACKET_BYTES, limits=limits)
    raws = [connect(hub) for _ in range(8)]
    taken = sum(hub.send(peer, VERDICT) is None for peer in introduce(hub, raws) for _ in range(20))
    assert 8 <= taken <= 8 * 2
    hub._socket.setsockopt(zmq.LINGER, 0)
    hub.close()
    for raw in raws:
        raw.close()
