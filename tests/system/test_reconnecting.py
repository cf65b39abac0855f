"""Cut links over real sockets: the device notices at once, and time limits mean what they say."""

import os
import threading
import time

import pytest

from bench.link.emulator import emulated_link
from bench.link.shape import LinkShape
from cloud_runtime.server import CloudLoop
from cloud_runtime.service import Identity, Service
from edge_runtime.handshake import DeviceIdentity
from edge_runtime.loop import EdgeLoop
from edgespec.config import CloudSettings, EdgeSettings, Request
from edgespec.errors import LinkError
from edgespec.keys import make_keys
from edgespec.protocol import VERSION, Hello, Ping, Pong
from edgespec.sampling import Sampling
from edgespec.transport import DealerLink, RouterHub
from engines.alone import write_alone
from engines.drafters.none import NoDrafter
from engines.toy import ToyEngine

HELLO = Hello(VERSION, "target", "tokenizer", "a device")
REQUEST = Request((3, 1, 4, 1, 5), 2000, Sampling(1.0, seed=7))
RTT_MS = 10.0


class SlowEngine(ToyEngine):
    """So slow that an answer outlives many cut links."""

    def run(self, rows):
        time.sleep(0.002)
        return super().run(rows)


class Cloud:
    def __init__(self, endpoint="tcp://127.0.0.1:*", **options):
        engine = SlowEngine(context=4096)
        settings = CloudSettings(drain_timeout=0.0, kv_memory=1 << 28)
        self.hub = RouterHub(endpoint, **options)
        service = Service(Identity("target", "tokenizer", ()), engine, settings)
        self.loop = CloudLoop(self.hub, service, engine, settings)
        self._thread = threading.Thread(target=self.loop.run)
        self._thread.start()

    def __enter__(self):
        return self.hub.endpoint

    def __exit__(self, *_):
        self.loop.request_drain()
        self._thread.join()
        self.hub.close()


def connect(endpoint, stack=None, **options):
    settings = EdgeSettings(connect=endpoint, **options)
    link = DealerLink(endpoint, settings.server_key, key=settings.key)
    try:
        return link, EdgeLoop.connect(link, NoDrafter(), DeviceIdentity(HELLO), settings)
    except LinkError:
        link.close()
        raise


def test_a_cut_link_is_resumed_within_a_round_trip_and_100_ms(capsys):
    cuts = int(os.environ.get("EDGESPEC_CUTS", "20"))
    with Cloud() as endpoint, emulated_link(endpoint) as wire:
        wire.shape(LinkShape(rtt_ms=RTT_MS))
        link, loop = connect(wire.endpoint)
        answer = loop.start(REQUEST)
        pieces = loop.write(answer)
        written, gaps = [], []
        for piece in pieces:
            written.append(piece.token)
            if len(gaps) < cuts and len(written) % 10 == 0 and not answer.unread:
                wire.cut()
                began = time.monotonic()
                resumed = answer.stats.resumed
                while answer.stats.resumed == resumed:
                    written.append(next(pieces).token)
                gaps.append(time.monotonic() - began)
        link.close()
    assert written == write_alone(
        ToyEngine(context=4096), REQUEST.prompt, REQUEST.max_tokens, REQUEST.sampling, ()
    )
    gaps.sort()
    with capsys.disabled():
        print(f"\ncut links: {len(gaps)}, p50 {gaps[len(gaps) // 2]:.3f} s, worst {gaps[-1]:.3f} s")
    assert len(gaps) == cuts
    assert gaps[len(gaps) // 2] < 0.1 + 4 * RTT_MS / 1e3
    assert gaps[-1] < 1.0, "a machine that is busy with other work may be late"


def test_a_cloud_that_returns_after_a_while_is_noticed_at_once():
    dying = Cloud()
    with dying as endpoint:
        link, loop = connect(endpoint)
        answer = loop.start(REQUEST)
        pieces = loop.write(answer)
        next(pieces)
        dying.hub.send = lambda *_: None  # it dies without a word
    time.sleep(1.0)
    with Cloud(endpoint):
        began = time.monotonic()
        before = len(answer.state.tokens)
        while len(answer.state.tokens) == before:
            next(pieces)
        took = time.monotonic() - began
        pieces.close()
        link.close()
    assert took < 0.5


class Parrot:
    """A cloud that replies to a Hello and to pings, and to nothing else."""

    def __init__(self, welcome):
        self.hub = RouterHub("tcp://127.0.0.1:*")
        self._welcome = welcome
        self._stopping = False
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self):
        from edgespec.protocol import unpack

        while not self._stopping:
            for peer, packet in self.hub.receive(0.05):
                message = unpack(packet)
                if isinstance(message, Hello):
                    self.hub.send(peer, self._welcome)
                if isinstance(message, Ping):
                    self.hub.send(peer, Pong(message.nonce))

    def close(self):
        self._stopping = True
        self._thread.join()
        self.hub.close()


@pytest.mark.parametrize("patience", [0.5, 5.0])
def test_pongs_alone_do_not_keep_an_answer_waiting(patience):
    with Cloud() as endpoint:
        link, loop = connect(endpoint)
        link.close()
    parrot = Parrot(loop.welcome)
    try:
        link, loop = connect(parrot.hub.endpoint, give_up=1.5, patience=patience)
        began = time.monotonic()
        with pytest.raises(LinkError, match=r"replies to pings|has been silent"):
            list(loop.write(loop.start(REQUEST)))
        assert 1.4 < time.monotonic() - began < 2.0
        link.close()
    finally:
        parrot.close()


def test_giving_up_takes_as_long_as_was_asked_for():
    dying = Cloud()
    with dying as endpoint:
        link, loop = connect(endpoint, give_up=1.2)
        pieces = loop.write(loop.start(REQUEST))
        next(pieces)
        dying.hub.send = lambda *_: None
    began = time.monotonic()
    with pytest.raises(LinkError, match="has been silent for 1 s"):
        list(pieces)
    assert time.monotonic() - began < 1.8
    link.close()


def test_a_refused_key_is_said_at_once(tmp_path):
    clients = tmp_path / "clients"
    clients.mkdir()
    public, secret = make_keys(tmp_path, "cloud")
    known, device = make_keys(tmp_path, "robot")
    make_keys(clients, "another")
    options = {"server_key": public, "key": device, "connect_timeout": 20.0}
    with Cloud(secret_key=secret, clients=clients) as endpoint:
        for key, words in ((device, r"copy robot\.key into the folder"), (None, "pass --key")):
            began = time.monotonic()
            with pytest.raises(LinkError, match=f"refused this device's key.*{words}"):
                connect(endpoint, **{**options, "key": key})
            assert time.monotonic() - began < 5
        (clients / "robot.key").write_bytes(known.read_bytes())
        time.sleep(0.5)
        link, loop = connect(endpoint, **options)
        pieces = loop.write(loop.start(REQUEST))
        next(pieces)
        (clients / "robot.key").unlink()
        with pytest.raises(LinkError, match="refused this device's key"):
            list(pieces)
        link.close()
