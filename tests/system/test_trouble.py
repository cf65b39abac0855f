"""Devices in trouble beside polite ones, on real sockets: the polite get their answers, exact, and
what the others cost is bounded and said."""

import logging
import random
import threading
import time
from contextlib import contextmanager

import pytest
import zmq

from cloud_runtime.server import CloudLoop
from cloud_runtime.service import Identity, Service
from edge_runtime.handshake import DeviceIdentity
from edge_runtime.loop import EdgeLoop
from edgespec.config import CloudSettings, EdgeSettings, Request
from edgespec.policies import LinkLimits
from edgespec.protocol import VERSION, Draft, Hello, Open, Ping, Resume, Terms, pack
from edgespec.sampling import Sampling
from edgespec.session import alias
from edgespec.transport import DealerLink, RouterHub
from engines.alone import write_alone
from engines.drafters.ngram import NgramDrafter
from engines.toy import ToyEngine

SECRET = bytes(16)

CONTEXT = 100_000
REQUEST = Request((3, 1, 4, 1, 5), 120, Sampling(1.0, seed=7))


class Cloud:
    """A cloud in a thread. What it counts may be looked at from outside."""

    def __init__(self, endpoint):
        engine = ToyEngine(context=CONTEXT)
        settings = CloudSettings(drain_timeout=0.0, kv_memory=1 << 30)
        self.hub = RouterHub(endpoint)
        self.service = Service(Identity("target", "tokenizer", ()), engine, settings)
        self.loop = CloudLoop(self.hub, self.service, engine, settings)
        self._thread = threading.Thread(target=self.loop.run)
        self._thread.start()

    def close(self):
        self.loop.request_drain()
        self._thread.join()
        self.hub._socket.setsockopt(zmq.LINGER, 0)
        self.hub.close()

    def hello(self, name):
        return Hello(VERSION, "target", "tokenizer", name, "ngram", "a board")

    def answer(self, name="polite"):
        """What a polite device gets."""
        link = DealerLink(self.hub.endpoint)
        try:
            settings = EdgeSettings(connect=self.hub.endpoint, patience=1.0)
            identity = DeviceIdentity(self.hello(name))
            loop = EdgeLoop.connect(link, NgramDrafter(), identity, settings)
            answer = loop.start(REQUEST)
            for _ in loop.write(answer):
                pass
            return answer.stats.token_ids
        finally:
            link.close()


@contextmanager
def raw(cloud, name, **options):
    """A device of which only the socket works."""
    with zmq.Context() as context, context.socket(zmq.DEALER) as dealer:
        dealer.setsockopt(zmq.LINGER, 0)
        for option, value in options.items():
            dealer.setsockopt(getattr(zmq, option), value)
        dealer.connect(cloud.hub.endpoint)
        dealer.send_multipart(pack(cloud.hello(name)))
        assert dealer.poll(10_000)
        dealer.recv_multipart()
        yield dealer


def opening(session, most=60_000):
    terms = Terms(drafting=False)
    return pack(Open(session, SECRET, 3, most, Sampling(), [], terms, [1, 2, 3]))


@pytest.fixture
def cloud(tmp_path, caplog):
    caplog.set_level(logging.INFO, "edgespec.cloud")
    # Such a socket holds little by itself, so that a queue fills before the test is over.
    cloud = Cloud(f"ipc://{tmp_path}/cloud")
    yield cloud
    cloud.close()


@pytest.fixture(scope="module")
def expected():
    return write_alone(
        ToyEngine(context=CONTEXT), REQUEST.prompt, REQUEST.max_tokens, REQUEST.sampling, ()
    )


def said(caplog, *words):
    """The log lines that say all of it."""
    return [m for m in caplog.messages if all(word in m for word in words)]


def until(condition):
    end = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < end, "it never came to that"
        time.sleep(0.01)


def test_a_device_that_vanishes_in_the_middle_of_a_draft(cloud, caplog, expected):
    with raw(cloud, "vanishing") as dealer:
        dealer.send_multipart(opening(1))
        dealer.send_multipart(pack(Draft(1, 1, 0, 3, [7, 8, 9])))
        assert dealer.poll(10_000)
    until(lambda: said(caplog, "vanishing has gone away", f"sessions: ['{alias(1)}']"))
    (session,) = (s for s in cloud.service.sessions if s.id == 1)
    before = session.length
    assert cloud.answer() == expected
    assert session.connection.away and session.length <= before + 1, "nobody writes for nobody"
    assert len(said(caplog, "vanishing has gone away")) == 1


def test_a_device_that_comes_back_goes_on(cloud, caplog):
    with raw(cloud, "vanishing") as dealer:
        dealer.send_multipart(opening(1))
        assert dealer.poll(10_000)
    until(lambda: said(caplog, "vanishing has gone away"))
    (session,) = cloud.service.sessions
    before = session.length
    with raw(cloud, "vanishing") as dealer:
        dealer.send_multipart(pack(Resume(1, SECRET, 3)))
        until(lambda: session.length > before + 10)
        assert not session.connection.away


def test_a_device_that_never_reads(cloud, caplog, expected):
    with raw(cloud, "deaf", RCVHWM=1) as dealer:
        dealer.send_multipart(opening(1))
        until(lambda: said(caplog, "deaf does not read", f"sessions: ['{alias(1)}']"))
        (session,) = (s for s in cloud.service.sessions if s.id == 1)
        before = session.length
        assert session.connection.away
        dealer.send_multipart(pack(Ping(1)))  # it speaks, but a reply does not reach it
        dealer.send_multipart(pack(Draft(1, 1, 0, 3, [7])))
        assert cloud.answer() == expected
        assert session.connection.away and session.length <= before + 2
        assert cloud.service.tally.dropped["unread"] < LinkLimits().send_queue_packets
        assert len(said(caplog, "deaf does not read")) == 1


def test_a_device_that_sends_at_a_hundred_times_the_rate(cloud, caplog, expected):
    stop = threading.Event()

    def flood(dealer):
        number = 0
        while not stop.is_set():
            number += 1
            try:
                dealer.send_multipart(pack(Ping(number)), zmq.NOBLOCK)
            except zmq.Again:
                time.sleep(0.001)

    with raw(cloud, "loud") as dealer:
        thread = threading.Thread(target=flood, args=(dealer,))
        thread.start()
        try:
            until(lambda: said(caplog, "loud sends more than 1000 packets"))
            assert cloud.answer() == expected
        finally:
            stop.set()
            thread.join()
    assert len(said(caplog, "loud sends more than")) == 1
    (loud,) = (device for device in cloud.service.devices if device.name == "loud")
    assert loud.troubles["flood"] == cloud.service.tally.dropped["flood"] > 0


def test_a_device_with_garbage(cloud, caplog, expected):
    chance = random.Random(5)
    with raw(cloud, "broken") as dealer:
        for _ in range(200):
            dealer.send_multipart([chance.randbytes(chance.randrange(1, 60))])
            dealer.send_multipart([pack(Ping(1))[0][:-1], b"x" * chance.randrange(9)])
        assert cloud.answer() == expected
        until(lambda: cloud.service.tally.dropped["garbage"] == 400)
    assert len(said(caplog, "broken sends packets that are no message")) == 1


def test_a_crowd_that_never_says_hello(cloud, expected):
    with zmq.Context() as context:
        strangers = [context.socket(zmq.DEALER) for _ in range(50)]
        for stranger in strangers:
            stranger.setsockopt(zmq.LINGER, 0)
            stranger.connect(cloud.hub.endpoint)
            stranger.send_multipart(opening(1))
        until(lambda: cloud.service.devices.strangers == 50)
        assert cloud.answer() == expected
        assert cloud.service.tally.refused["hello"] >= 50
        for stranger in strangers:
            stranger.close()
    assert len(cloud.service.devices) == 1
