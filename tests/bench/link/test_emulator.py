"""The emulated network: what it promises about order, time and trouble."""

import os
import random
import socket
import threading
import time
from contextlib import contextmanager
from urllib.parse import urlsplit

import pytest
import zmq

from bench.link.emulator import accuracy, emulated_link
from bench.link.shape import LinkShape
from edgespec.errors import LinkError, UsageError


@contextmanager
def connected():
    """A link, the device's socket at one end of it and the target's at the other."""
    with (
        socket.create_server(("127.0.0.1", 0)) as listener,
        emulated_link(f"tcp://127.0.0.1:{listener.getsockname()[1]}") as link,
        dial(link) as device,
    ):
        target, _ = listener.accept()
        target.settimeout(5)
        with target:
            yield link, device, target


def dial(link):
    parts = urlsplit(link.endpoint)
    return socket.create_connection((parts.hostname, parts.port), timeout=5)


def read(source, count):
    data = b""
    while len(data) < count:
        piece = source.recv(count - len(data))
        assert piece, f"closed after {len(data)} bytes"
        data += piece
    return data


def closed(source):
    try:
        return source.recv(1) == b""
    except ConnectionResetError:
        return True


def seconds(source, sink, data):
    start = time.monotonic()
    sender = threading.Thread(target=source.sendall, args=(data,))
    sender.start()
    assert read(sink, len(data)) == data
    sender.join()
    return time.monotonic() - start


def test_bytes_stay_whole_and_in_order_whatever_the_shape():
    shapes = [
        LinkShape(rtt_ms=60, jitter_ms=30),
        LinkShape(),  # shorter: what comes now must not overtake
        LinkShape(rtt_ms=10, jitter_ms=10, stall_every=0.02, stall_ms=30),
        LinkShape(rtt_ms=2, mbit=400, jitter_ms=5),
    ]
    blocks = [random.Random(seed).randbytes(1 + 997 * seed) for seed in range(120)]
    sent = b"".join(blocks)

    def send(sink):
        for block in blocks:
            sink.sendall(block)
            time.sleep(0.003)

    with connected() as (link, device, target):
        got = {}
        readers = [
            threading.Thread(target=lambda end=end: got.update({end: read(end, len(sent))}))
            for end in (device, target)
        ]
        senders = [threading.Thread(target=send, args=(end,)) for end in (device, target)]
        for thread in readers + senders:
            thread.start()
        for shape in shapes:
            link.shape(shape)
            time.sleep(0.09)
        for thread in readers + senders:
            thread.join()
        assert got[device] == got[target] == sent
        assert link.counters() == (len(sent), len(sent))


@pytest.mark.parametrize("rtt_ms", [0.0, 30.0])
def test_a_round_trip_is_never_shorter_than_the_rtt(rtt_ms):
    with connected() as (link, device, target):
        link.shape(LinkShape(rtt_ms=rtt_ms))
        for _ in range(8):
            start = time.monotonic()
            one_way = seconds(device, target, b"there")
            seconds(target, device, b"and back")
            assert one_way >= rtt_ms / 2000
            assert rtt_ms / 1000 <= time.monotonic() - start < rtt_ms / 1000 + 0.2


def test_jitter_varies_the_delay_and_never_makes_it_negative():
    with connected() as (link, device, target):
        link.shape(LinkShape(rtt_ms=4, jitter_ms=10, seed=1))
        delays = [seconds(device, target, b"x") for _ in range(20)]
        assert min(delays) < 0.004 + 0.01 and max(delays) > 0.01


def test_a_stall_delivers_nothing_and_then_everything():
    with connected() as (link, device, target):
        link.shape(LinkShape(stall_every=1e-6, stall_ms=300))  # one after the other
        device.sendall(b"first")
        time.sleep(0.02)
        device.sendall(b"second")
        start = time.monotonic()
        target.settimeout(0.15)
        with pytest.raises(TimeoutError):
            target.recv(100)
        target.settimeout(5)
        time.sleep(0.2)
        assert read(target, 11) == b"firstsecond"
        assert time.monotonic() - start < 1


def test_bandwidth_delays_a_large_block_and_not_the_message_before_it():
    data = bytes(500_000)
    with connected() as (link, device, target):
        assert seconds(device, target, data) < 0.3
        link.shape(LinkShape(mbit=10))
        start = time.monotonic()
        device.sendall(b"small" + data[:-5])
        assert read(target, 5) == b"small"
        assert time.monotonic() - start < 0.2
        assert read(target, len(data) - 5) == data[:-5]
        assert 0.4 <= time.monotonic() - start < 0.8


def test_a_side_that_does_not_read_holds_the_other_up():
    with connected() as (link, device, _):
        device.settimeout(0.3)
        with pytest.raises(TimeoutError):
            device.sendall(bytes(100 << 20))
        assert 32 << 20 <= link.counters()[0] < 40 << 20


def test_the_end_of_a_connection_comes_after_its_last_bytes():
    with connected() as (link, device, target):
        link.shape(LinkShape(rtt_ms=60))
        device.sendall(b"goodbye")
        device.close()
        assert read(target, 7) == b"goodbye"
        assert target.recv(1) == b""


def test_zeromq_reconnects_after_a_cut():
    with (
        zmq.Context() as context,
        context.socket(zmq.ROUTER) as router,
        context.socket(zmq.DEALER) as dealer,
    ):
        for end in (router, dealer):
            end.setsockopt(zmq.LINGER, 0)
            end.setsockopt(zmq.RCVTIMEO, 5000)
        port = router.bind_to_random_port("tcp://127.0.0.1")
        with emulated_link(f"tcp://127.0.0.1:{port}") as link:
            dealer.connect(link.endpoint)
            names = set()
            for number in (b"1", b"2"):
                dealer.send_multipart([b"ask", number])
                name, *frames = router.recv_multipart()
                assert frames == [b"ask", number]
                router.send_multipart([name, b"answer", number])
                assert dealer.recv_multipart() == [b"answer", number]
                names.add(name)
                link.cut()
                time.sleep(0.1)  # the dealer notices; what it sends before that is lost
            assert len(names) == 2


def test_a_refused_connection_is_closed_and_the_link_goes_on():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        address = listener.getsockname()
    with emulated_link(f"tcp://127.0.0.1:{address[1]}") as link:
        with dial(link) as device:
            assert closed(device)
        with socket.create_server(address) as listener, dial(link) as device:
            target, _ = listener.accept()
            with target:
                assert seconds(device, target, b"now") < 1


@pytest.mark.parametrize("value", [-1.0, float("nan"), float("inf")])
@pytest.mark.parametrize("name", ["rtt_ms", "jitter_ms", "mbit", "stall_every", "stall_ms"])
def test_a_shape_that_no_link_has_is_refused(name, value):
    with pytest.raises(UsageError, match=f"{name} is {value}"):
        LinkShape(**{name: value}).check()


@pytest.mark.parametrize("target", ["127.0.0.1:5555", "tcp://127.0.0.1", "tcp://host:99999", ""])
def test_a_target_that_is_no_endpoint_is_refused(target):
    with pytest.raises(UsageError, match="tcp://HOST:PORT"), emulated_link(target):
        pass


def test_a_core_that_is_not_there_is_refused():
    with (
        pytest.raises(UsageError, match="core 9999"),
        emulated_link("tcp://127.0.0.1:1", core=9999),
    ):
        pass


def test_the_process_is_gone_after_the_context():
    with emulated_link("tcp://127.0.0.1:1") as link:
        pid = link._process.pid
        os.kill(pid, 0)
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
    with pytest.raises(ConnectionRefusedError):
        dial(link)


def test_the_process_goes_with_its_parent_and_is_missed():
    with emulated_link("tcp://127.0.0.1:1") as link:
        link._process.stdin.close()  # what the death of a parent does
        assert link._process.wait(5) == 0
    with emulated_link("tcp://127.0.0.1:1") as link:
        link._process.kill()
        link._process.wait()
        with pytest.raises(LinkError, match="has ended"):
            link.cut()


def test_its_own_share_is_small_and_never_negative():
    own = accuracy(LinkShape(rtt_ms=10), core=min(os.sched_getaffinity(0)), probes=10)
    assert 0 <= own.median_ms <= own.p99_ms and own.median_ms < 20
