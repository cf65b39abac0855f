"""Scheduler and wire as a share of a step, and the memory of a session."""

from __future__ import annotations

import random
import threading
import time
import tracemalloc
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

from bench.crowd.cloud import Crowd, Served, tell
from bench.crowd.figures import OverheadPart, Sample, SharedLoopCost, loop_cost
from bench.crowd.idle import idle_opening, idlers
from bench.fleet.devices import TrialPlan
from bench.lab.methods import EDGESPEC
from bench.lab.processes import resident_mb
from cloud_runtime.service import Identity, Service
from cloud_runtime.steps import Batch
from edgespec.config import CloudSettings
from edgespec.manifest import Bundle
from edgespec.protocol import VERSION, Hello, Message, pack
from engines.base import final_choices
from engines.toy import ToyEngine

SESSION_TOKENS = 192
"""Length of the sessions whose memory is measured."""
KV_SESSIONS_COUNT = 24
"""Sessions whose KV cache is measured."""
WARM_UP_COUNT = 8
"""Sessions opened before them, so that memory which the target allocates once is not counted."""
RECORDS_COUNT = 2000
"""Idle sessions whose records are measured."""
OPENED_TOGETHER_COUNT = 50
TOY_VOCABULARY_TOKENS = 2000
"""Large, so that most ids are objects of their own in Python."""
TOY_KV_BYTES = 1 << 40


def crowd_overhead(crowd: Crowd) -> OverheadPart:
    settings = crowd.settings
    idle = settings.connected - settings.active
    with crowd.cloud() as served:
        tell(f"memory of {KV_SESSIONS_COUNT} sessions of {SESSION_TOKENS} tokens")
        kv_bytes = _kv_bytes(crowd.bundle, served)
        tell(f"{settings.active} devices, and {idle} idle sessions")
        samples: list[Sample] = []
        before_mb = resident_mb(served.pid)
        with idlers(crowd.bundle, served.endpoint, idle):
            idle_mb = resident_mb(served.pid) - before_mb
            sampled = partial(_sampled, served, samples)
            trial = served.generator.measure(EDGESPEC, settings.active, sampled).trial
    tell(f"records of {RECORDS_COUNT} sessions")
    cost = loop_cost(*samples)
    return OverheadPart(
        overhead_share=cost.share,
        session_kv_bytes=kv_bytes,
        session_record_bytes=record_bytes(RECORDS_COUNT),
        overhead=SharedLoopCost(
            connected=settings.connected,
            active=settings.active,
            generator=trial.generator,
            cloud_cpu=trial.cloud_cpu,
            reliable=trial.reliable,
            length=SESSION_TOKENS,
            idle_mb=idle_mb,
            memory_mb=trial.memory_mb,
            **vars(cost),
        ),
    )


@contextmanager
def _sampled(served: Served, samples: list[Sample], plan: TrialPlan) -> Iterator[None]:
    """Sample the cloud's metrics when the window opens, and when it closes."""

    def sample() -> None:
        for moment in (plan.opens, plan.closes):
            time.sleep(max(0.0, moment - time.monotonic()))
            samples.append(served.sample())

    sampling = threading.Thread(target=sample)
    sampling.start()
    try:
        yield
    finally:
        sampling.join()


def _kv_bytes(bundle: Bundle, served: Served) -> float:
    """Growth of the cloud's memory for each session of `SESSION_TOKENS` tokens."""
    with idlers(bundle, served.endpoint, WARM_UP_COUNT, SESSION_TOKENS):
        before = resident_mb(served.pid)
        with idlers(bundle, served.endpoint, KV_SESSIONS_COUNT, SESSION_TOKENS + 1):
            return (resident_mb(served.pid) - before) * 1e6 / KV_SESSIONS_COUNT


def record_bytes(count: int) -> float:
    """Bytes of Python objects for each idle session of `SESSION_TOKENS` tokens and its device.

    These are traced allocations of a cloud with a toy target, without the KV cache.
    """
    engine = ToyEngine(TOY_VOCABULARY_TOKENS, 2 * SESSION_TOKENS, layers=1, slots=2 * count)
    identity = Identity("toy", "toy", ())
    settings = CloudSettings(
        max_sessions=2 * count,
        kv_memory=TOY_KV_BYTES,
        max_batch_tokens=OPENED_TOGETHER_COUNT * SESSION_TOKENS,
        prefill_chunk=SESSION_TOKENS,
    )
    service = Service(identity, engine, settings)
    _converse(service, engine, range(count, count + OPENED_TOGETHER_COUNT))
    tracemalloc.start()
    try:
        for first in range(0, count, OPENED_TOGETHER_COUNT):
            _converse(service, engine, range(first, min(first + OPENED_TOGETHER_COUNT, count)))
        return tracemalloc.get_traced_memory()[0] / count
    finally:
        tracemalloc.stop()


def _converse(service: Service, engine: ToyEngine, sessions: range) -> None:
    """Open sessions and run them until all wait for their devices."""
    chance = random.Random(sessions.start)

    def say(session: int, message: Message) -> None:
        service.receive(session.to_bytes(5, "big"), pack(message), 0.0)

    for session in sessions:
        say(session, Hello(VERSION, "toy", "toy", f"device {session}"))
        say(
            session,
            idle_opening(
                session, [chance.randrange(TOY_VOCABULARY_TOKENS) for _ in range(SESSION_TOKENS)]
            ),
        )
    service.notes()
    while isinstance(batch := service.stepping.next(0.0), Batch):
        service.stepping.commit(batch, final_choices(engine, batch.rows), 0.0)
        service.notes()
