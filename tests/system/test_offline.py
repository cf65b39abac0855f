"""Answers that go on while the cloud is lost: labelled meanwhile, the target's own in the end."""

import threading

import pytest

from cloud_runtime.server import CloudLoop
from cloud_runtime.service import Identity, Service
from edge_runtime.handshake import DeviceIdentity
from edge_runtime.loop import EdgeLoop
from edgespec.config import CloudSettings, EdgeSettings, Request
from edgespec.protocol import VERSION, Hello
from edgespec.sampling import Sampling
from edgespec.transport import DealerLink, RouterHub
from engines.alone import write_alone
from engines.drafters.model import ModelDrafter
from engines.toy import ToyEngine

HELLO = Hello(VERSION, "target", "tokenizer", "a device")
REQUEST = Request((3, 1, 4, 1, 5), 400, Sampling(1.0, seed=7))


class Cloud:
    def __init__(self, endpoint="tcp://127.0.0.1:*"):
        engine = ToyEngine(context=4096)
        settings = CloudSettings(drain_timeout=0.0, kv_memory=1 << 28)
        self.hub = RouterHub(endpoint)
        service = Service(Identity("target", "tokenizer", ()), engine, settings)
        self.loop = CloudLoop(self.hub, service, engine, settings)
        self._thread = threading.Thread(target=self.loop.run)
        self._thread.start()

    def vanish(self):
        self.hub.send = lambda *_: None
        self.loop.request_drain()
        self._thread.join()
        self.hub.close()


def connect(endpoint):
    settings = EdgeSettings(connect=endpoint, offline="draft", offline_after=0.3, give_up=1.0)
    link = DealerLink(endpoint)
    drafter = ModelDrafter(ToyEngine(context=4096, noise=0.3), "near")
    return link, EdgeLoop.connect(link, drafter, DeviceIdentity(HELLO), settings)


def alone(engine=None):
    engine = engine or ToyEngine(context=4096)
    return write_alone(engine, REQUEST.prompt, REQUEST.max_tokens, REQUEST.sampling, ())


@pytest.mark.parametrize("unverified", [1, 60])
def test_the_text_is_the_targets_own_once_the_cloud_is_back(unverified):
    cloud = Cloud()
    link, loop = connect(cloud.hub.endpoint)
    answer = loop.start(REQUEST)
    pieces = loop.write(answer)
    shown = [next(pieces) for _ in range(10)]
    cloud.vanish()
    while sum(piece.origin == "unverified" for piece in shown) < unverified:
        shown.append(next(pieces))
    again = Cloud(cloud.hub.endpoint)
    shown += pieces
    link.close()
    again.vanish()
    written = [piece.token for piece in shown if piece.origin != "unverified"]
    assert written == answer.stats.token_ids == alone()
    assert answer.stats.unverified == 0 and answer.stats.finish == "length"


def test_a_cloud_that_never_returns_leaves_labelled_text():
    cloud = Cloud()
    link, loop = connect(cloud.hub.endpoint)
    answer = loop.start(REQUEST)
    pieces = loop.write(answer)
    shown = [next(pieces) for _ in range(10)]
    cloud.vanish()
    shown += pieces
    link.close()
    origins = [piece.origin == "unverified" for piece in shown]
    assert any(origins) and origins == sorted(origins)
    assert len(shown) == REQUEST.max_tokens == answer.stats.tokens
    assert answer.stats.unverified == sum(origins) and answer.stats.finish == "length"
    committed = len(shown) - sum(origins)
    assert answer.stats.token_ids[:committed] == alone()[:committed]
    assert f"the last {sum(origins)} tokens are the draft's own" in answer.stats.as_text()
