"""Device and cloud in one process, and the targets that tests run on."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field

import pytest

from cloud_runtime.server import CloudLoop
from cloud_runtime.service import Identity, Service
from edge_runtime.loop import EdgeLoop, greet
from edgespec.config import CloudSettings, EdgeSettings, Request
from edgespec.loopback import LoopbackHub
from edgespec.protocol import VERSION, Hello
from edgespec.sampling import choose
from engines.base import Engine, Row, final_choices

HELLO = Hello(VERSION, "target", "tokenizer", "a device")


@dataclass
class House:
    """A cloud over `engine`, and devices that connect to it without a socket."""

    engine: Engine
    end_ids: tuple[int, ...] = ()
    settings: CloudSettings = field(default_factory=CloudSettings)

    def __post_init__(self):
        self.hub = LoopbackHub()
        self.start()

    def start(self):
        """A cloud without memory of sessions, on the same hub."""
        ticks = itertools.count()
        identity = Identity("target", "tokenizer", (1, 2))
        self.service = Service(identity, self.engine, self.settings)
        self.cloud = CloudLoop(
            self.hub, self.service, self.engine, self.settings, clock=lambda: next(ticks) * 1e-3
        )
        self.hub.pump = lambda: self.cloud.turn(0.0)

    def device(self, drafter, *, draft_length=4, drafting=True, **settings):
        link = self.hub.connect()
        edge = EdgeSettings(draft_length=draft_length, **settings)
        welcome = greet(link, HELLO, edge)
        return EdgeLoop(link, drafter, HELLO, welcome, list(self.end_ids), edge, drafting=drafting)

    def answer(self, drafter, request: Request, **options):
        loop = self.device(drafter, **options)
        answer = loop.start(request)
        for _ in loop.write(answer, request):
            pass
        return answer

    def alone(self, request: Request) -> list[int]:
        """What the target writes by itself: one token a step, nothing of the cloud involved."""
        slot = self.engine.open()
        tokens = list(request.prompt)
        try:
            while len(tokens) < len(request.prompt) + request.max_tokens:
                start = self.engine.cached(slot)
                (choices,) = final_choices(self.engine, [Row(slot, start, tokens[start:])])
                tokens.append(choose(choices.logits[0], request.sampling, len(tokens)))
                if tokens[-1] in self.end_ids:
                    break
        finally:
            self.engine.close(slot)
        return tokens[len(request.prompt) :]


@pytest.fixture
def house():
    return House
