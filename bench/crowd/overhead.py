"""What a cloud's scheduler and wire are of a step, the memory of a session, and how well it
predicts its steps."""

from __future__ import annotations

import random
import threading
import time
import tracemalloc
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

from bench.crowd.cloud import Crowd, Served, tell
from bench.crowd.figures import Sample, overhead
from bench.fleet.devices import Cell
from bench.lab.methods import EDGESPEC
from bench.lab.processes import resident_mb
from cloud_runtime.service import Identity, Service
from cloud_runtime.steps import Batch
from edge_runtime.handshake import DeviceIdentity
from edgespec.config import CloudSettings
from edgespec.errors import EdgespecError
from edgespec.manifest import Bundle
from edgespec.protocol import (
    SECRET_BYTES,
    VERSION,
    Close,
    Error,
    Hello,
    Message,
    Open,
    Ping,
    Terms,
    Verdict,
    pack,
)
from edgespec.sampling import Sampling
from edgespec.transport import DealerLink
from engines.base import final_choices
from engines.toy import ToyEngine

SECRET = bytes(SECRET_BYTES)

IDLE = Terms(decoding=False)
"""Of a session whose target waits for its device, and the device for its user."""
PING = 1.0
LENGTH = 192
"""Tokens of the sessions whose memory is measured."""
SAMPLES = 24
"""Sessions whose KV cache is measured."""
WARM = 8
"""Sessions before them, so that what the target needs once is there."""
RECORDS, AT_ONCE = 2000, 50
"""Idle sessions whose records are measured, and how many of them are opened together."""
WORDS = 2000
"""Vocabulary of the toy behind them: most ids are objects of their own."""
PATIENCE = 120.0
"""Seconds until all idle sessions are open."""
PHASES = (1, 12, 4, 24, 8)
"""Devices of each phase of `model`."""
PHASE_SECONDS, ARRIVE = 8.0, 1.0


def crowd_overhead(crowd: Crowd) -> dict[str, Any]:
    settings = crowd.settings
    idle = settings.connected - settings.active
    with crowd.cloud() as served:
        tell(f"memory of {SAMPLES} sessions of {LENGTH} tokens")
        kv = _kv_bytes(crowd.bundle, served)
        tell(f"{settings.active} devices, and {idle} idle sessions")
        samples: list[Sample] = []
        before = resident_mb(served.pid)
        with idlers(crowd.bundle, served.endpoint, idle):
            connected = resident_mb(served.pid)
            figures = served.generator.measure(
                EDGESPEC, settings.active, partial(_sampled, served, samples)
            ).figures
    tell(f"records of {RECORDS} sessions")
    cost = overhead(*samples)
    return {
        "overhead_share": cost["share"],
        "session_kv_bytes": kv,
        "session_record_bytes": record_bytes(RECORDS),
        "overhead": cost
        | {
            "connected": settings.connected,
            "active": settings.active,
            "generator": figures["generator"],
            "cloud_cpu": figures["cloud_cpu"],
            "trusted": figures["trusted"],
            "length": LENGTH,
            "idle_mb": connected - before,
            "memory_mb": figures["memory_mb"],
        },
    }


def crowd_model(crowd: Crowd) -> dict[str, Any]:
    """Predictions of a new cloud, after phases with different numbers of devices."""
    phases = []
    seconds = min(PHASE_SECONDS, crowd.settings.seconds)
    with crowd.cloud(seconds, ARRIVE) as served:
        for devices in PHASES:
            tell(f"steps with {devices} devices")
            served.generator.measure(EDGESPEC, devices)
            sample = served.sample()
            phases.append(
                {
                    "devices": devices,
                    "steps": sample["step_seconds_count", ""],
                    "error": sample["step_error_ratio", ""],
                    "prompt_error": sample["prompt_step_error_ratio", ""],
                }
            )
    last = phases[-1]
    return {
        "step_error": last["error"],
        "prompt_step_error": last["prompt_error"],
        "steps": last["steps"],
        "model": phases,
    }


@contextmanager
def _sampled(served: Served, samples: list[Sample], cell: Cell) -> Iterator[None]:
    """Two samples of the cloud's figures: when the window opens, and when it closes."""

    def sample() -> None:
        for moment in (cell.opens, cell.closes):
            time.sleep(max(0.0, moment - time.monotonic()))
            samples.append(served.sample())

    sampling = threading.Thread(target=sample)
    sampling.start()
    try:
        yield
    finally:
        sampling.join()


class Idler:
    """A device with a session that waits for its user."""

    def __init__(self, endpoint: str, hello: Hello, opening: Open) -> None:
        self._link, self._opening = DealerLink(endpoint), opening
        self._link.send(hello)
        self._link.send(opening)
        self.open = False

    def listen(self) -> None:
        for message in self._link.receive(0.0):
            self.open = self.open or isinstance(message, Verdict)
            if isinstance(message, Error):
                raise EdgespecError(f"the cloud refused an idle session: {message.message}")

    def ping(self) -> None:
        self._link.send(Ping(0))
        self.listen()

    def close(self) -> None:
        self._link.send(Close(self._opening.session, SECRET))
        self._link.close()


@contextmanager
def idlers(bundle: Bundle, endpoint: str, count: int, length: int = 0) -> Iterator[None]:
    """So many connections with an open session each, in which nothing happens. The prompts are
    alike, or of `length` tokens and different."""
    hello, chance = DeviceIdentity.of(bundle, "idle").hello, random.Random(length)
    words = bundle.manifest.target.architecture.vocabulary
    same = [chance.randrange(3, words) for _ in range(12)]
    with ExitStack() as stack:
        idle = []
        for _ in range(count):
            prompt = [chance.randrange(3, words) for _ in range(length)] if length else same
            opening = _idle(chance.getrandbits(62), prompt)
            idle.append(Idler(endpoint, hello, opening))
            stack.callback(idle[-1].close)
        _until_open(idle)
        over = threading.Event()
        pinging = threading.Thread(target=_ping, args=(idle, over))
        pinging.start()
        try:
            yield
        finally:
            over.set()
            pinging.join()


def _until_open(idle: list[Idler]) -> None:
    end = time.monotonic() + PATIENCE
    while not all(each.open for each in idle):
        if time.monotonic() > end:
            raise EdgespecError(f"{len(idle)} sessions did not open within {PATIENCE:g} s")
        for each in idle:
            each.listen()
        time.sleep(0.05)


def _ping(idle: list[Idler], over: threading.Event) -> None:
    """Spread evenly, as those of devices are."""
    while not over.is_set():
        for each in idle:
            each.ping()
            if over.wait(PING / len(idle)):
                return


def _idle(session: int, prompt: list[int]) -> Open:
    return Open(session, SECRET, len(prompt), 8, Sampling(), [], IDLE, prompt)


def _kv_bytes(bundle: Bundle, served: Served) -> float:
    """What the cloud grows by for each session of `LENGTH` tokens."""
    with idlers(bundle, served.endpoint, WARM, LENGTH):
        before = resident_mb(served.pid)
        with idlers(bundle, served.endpoint, SAMPLES, LENGTH + 1):
            return (resident_mb(served.pid) - before) * 1e6 / SAMPLES


def record_bytes(count: int) -> float:
    """What the cloud's Python keeps of an idle session of `LENGTH` tokens and its device, KV cache
    apart: traced allocations, with a toy for a target."""
    engine = ToyEngine(WORDS, 2 * LENGTH, layers=1, slots=2 * count)
    identity = Identity("toy", "toy", ())
    settings = CloudSettings(
        max_sessions=2 * count, kv_memory=1 << 40, max_batch_tokens=AT_ONCE * LENGTH,
        prefill_chunk=LENGTH,
    )  # fmt: skip
    service = Service(identity, engine, settings)
    _converse(service, engine, range(count, count + AT_ONCE))
    tracemalloc.start()
    try:
        for first in range(0, count, AT_ONCE):
            _converse(service, engine, range(first, min(first + AT_ONCE, count)))
        return tracemalloc.get_traced_memory()[0] / count
    finally:
        tracemalloc.stop()


def _converse(service: Service, engine: ToyEngine, sessions: range) -> None:
    """Opens sessions and runs them until all wait for their devices."""
    chance = random.Random(sessions.start)

    def say(session: int, message: Message) -> None:
        service.receive(session.to_bytes(5, "big"), pack(message), 0.0)

    for session in sessions:
        say(session, Hello(VERSION, "toy", "toy", f"device {session}"))
        say(session, _idle(session, [chance.randrange(WORDS) for _ in range(LENGTH)]))
    service.notes()
    while isinstance(batch := service.stepping.next(0.0), Batch):
        service.stepping.commit(batch, final_choices(engine, batch.rows), 0.0)
        service.notes()
