"""Answers that go on while the cloud is lost: labelled meanwhile, the target's own in the end."""

import json
import socket
import subprocess
import sys
import threading
import time
from dataclasses import replace

import pytest

from cloud_runtime.server import CloudLoop
from cloud_runtime.service import Identity, Service
from edge_runtime.handshake import DeviceIdentity
from edge_runtime.loop import EdgeLoop
from edgespec.config import CloudSettings, EdgeSettings, Request
from edgespec.errors import LinkError, UsageError
from edgespec.protocol import VERSION, Hello
from edgespec.sampling import Sampling
from edgespec.text import Codec, TextStream
from edgespec.transport import DealerLink, RouterHub
from engines.alone import write_alone
from engines.drafters.model import ModelDrafter
from engines.toy import ToyEngine

HELLO = Hello(VERSION, "target", "tokenizer", "a device")
REQUEST = Request((3, 1, 4, 1, 5), 400, Sampling(1.0, seed=7))


class Cloud:
    def __init__(self, endpoint="tcp://127.0.0.1:*", engine=None):
        engine = engine or ToyEngine(context=4096)
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


def free_endpoint():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"tcp://127.0.0.1:{probe.getsockname()[1]}"


@pytest.mark.parametrize("unverified", [1, 60])
def test_an_answer_begins_without_a_cloud_and_ends_as_the_targets_own(unverified):
    endpoint = free_endpoint()
    link, loop = connect(endpoint)
    answer = loop.start(REQUEST)
    pieces = loop.write(answer)
    shown = [next(pieces) for _ in range(unverified)]
    assert {piece.origin for piece in shown} == {"unverified"}
    cloud = Cloud(endpoint)
    shown += pieces
    link.close()
    cloud.vanish()
    written = [piece.token for piece in shown if piece.origin != "unverified"]
    assert written == answer.stats.token_ids == alone()
    assert answer.stats.unverified == 0 and not answer.stats.resumed
    assert loop.welcome.step_ms > 0


def test_the_unverified_text_is_offered_as_a_draft():
    endpoint = free_endpoint()
    link = DealerLink(endpoint)
    settings = EdgeSettings(connect=endpoint, offline="draft", offline_after=0.3)
    drafter = SlowDrafter(ModelDrafter(ToyEngine(context=4096), "the target's twin"))
    loop = EdgeLoop.connect(link, drafter, DeviceIdentity(HELLO), settings)
    answer = loop.start(replace(REQUEST, max_tokens=100))
    pieces = loop.write(answer)
    shown = [next(pieces) for _ in range(20)]
    cloud = Cloud(endpoint, SlowEngine(context=4096))
    shown += pieces
    link.close()
    cloud.vanish()
    final = [piece for piece in shown if piece.origin != "unverified"]
    assert [piece.token for piece in final] == alone()[:100]
    assert sum(piece.origin == "device" for piece in final[:20]) >= 8
    assert not any(piece.correction for piece in shown)


def test_the_draft_alone_obeys_penalties_and_the_target_confirms_it():
    sampling = Sampling(presence_penalty=1.0, frequency_penalty=0.3, repetition_penalty=1.2)
    request = Request((3, 1, 4, 1, 5), 80, sampling, logprobs=2)
    endpoint = free_endpoint()
    link = DealerLink(endpoint)
    settings = EdgeSettings(connect=endpoint, offline="draft", offline_after=0.3)
    twin = SlowDrafter(ModelDrafter(ToyEngine(context=4096), "the target's twin"))
    loop = EdgeLoop.connect(link, twin, DeviceIdentity(HELLO), settings)
    answer = loop.start(request)
    pieces = loop.write(answer)
    shown = [next(pieces) for _ in range(40)]
    expected = write_alone(ToyEngine(context=4096), request.prompt, 80, sampling, ())
    assert [piece.token for piece in shown] == expected[:40]
    assert {(piece.origin, piece.logprobs) for piece in shown} == {("unverified", None)}
    cloud = Cloud(endpoint)
    shown += pieces
    link.close()
    cloud.vanish()
    final = [piece for piece in shown if piece.origin != "unverified"]
    assert [piece.token for piece in final] == expected
    assert all(len(piece.logprobs.top) == 2 for piece in final)
    assert not any(piece.correction for piece in shown)


def test_a_second_answer_finds_the_cloud_that_came_in_between():
    endpoint = free_endpoint()
    link, loop = connect(endpoint)
    short = replace(REQUEST, max_tokens=5)
    assert {piece.origin for piece in loop.write(loop.start(short))} == {"unverified"}
    cloud = Cloud(endpoint)
    first = loop.start(REQUEST)
    list(loop.write(first))
    second = loop.start(REQUEST)
    origins = {piece.origin for piece in loop.write(second)}
    link.close()
    cloud.vanish()
    assert first.stats.token_ids == second.stats.token_ids == alone()
    assert "unverified" not in origins


def test_a_prompt_that_the_late_cloud_cannot_hold_ends_in_one_sentence():
    endpoint = free_endpoint()
    link, loop = connect(endpoint)
    answer = loop.start(replace(REQUEST, prompt=tuple(range(1, 41))))
    pieces = loop.write(answer)
    next(pieces)
    cloud = Cloud(endpoint, ToyEngine(context=32))
    with pytest.raises(UsageError, match="at most 32; shorten the prompt"):
        list(pieces)
    link.close()
    cloud.vanish()


def test_the_command_answers_without_a_cloud(tiny_bundle):
    command = [
        sys.executable, "-m", "edgespec", "edge-run", str(tiny_bundle.folder),
        "--connect", free_endpoint(), "--offline", "draft", "--offline-after", "0.3",
        "--prompt", "the quick", "-n", "30", "--json",
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    stats = json.loads(done.stderr.splitlines()[-1])
    assert not done.returncode and stats["unverified"] == stats["tokens"] == len(stats["token_ids"])
    codec = Codec(tiny_bundle)
    stream = TextStream(codec, codec.encode("the quick"))
    assert done.stdout == "".join(map(stream.push, stats["token_ids"])) + "\n"


def test_without_the_option_a_missing_cloud_is_an_error():
    endpoint = free_endpoint()
    link = DealerLink(endpoint)
    settings = EdgeSettings(connect=endpoint, connect_timeout=0.2)
    with pytest.raises(LinkError, match="nobody answered"):
        EdgeLoop.connect(link, ModelDrafter(ToyEngine(), "near"), DeviceIdentity(HELLO), settings)
    link.close()


class SlowEngine(ToyEngine):
    def run(self, rows):
        time.sleep(0.01)
        return super().run(rows)


class SlowDrafter:
    """A drafter that is slower than the target, so that only drafts made before are in time."""

    def __init__(self, drafter):
        self._drafter = drafter
        self.name, self.batch, self.retain = drafter.name, drafter.batch, drafter.retain
        self.acceptance = drafter.acceptance

    def guess(self, requests):
        time.sleep(0.02)
        return self._drafter.guess(requests)


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
