"""A cloud with a toy target: the real loop on real sockets in a process of its own, with steps that
take almost no time."""

from __future__ import annotations

import gc
import logging
import multiprocessing
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import NamedTuple

from bench.lab.processes import cores
from cloud_runtime.server import CloudLoop
from cloud_runtime.service import Identity, Service
from edgespec.config import CloudSettings
from edgespec.errors import EdgespecError
from edgespec.protocol import VERSION, Hello
from edgespec.transport import RouterHub
from engines.toy import ToyEngine

REPLY_TIMEOUT_S = 60.0
"""Time in which the cloud's process must answer."""


class Kept(NamedTuple):
    """Objects that the cloud's process holds after garbage collection."""

    objects: int
    sessions: int
    devices: int
    """Devices that the cloud remembers."""


@dataclass(frozen=True)
class ToyCloud:
    endpoint: str
    pid: int
    _pipe: Connection

    def kept(self) -> Kept:
        """Raises `EdgespecError` if the cloud does not answer."""
        self._pipe.send(None)
        if not self._pipe.poll(REPLY_TIMEOUT_S):
            raise EdgespecError("the toy cloud does not answer")
        kept: Kept = self._pipe.recv()
        return kept


def toy_hello(device: str) -> Hello:
    return Hello(VERSION, "toy", "toy", device)


@contextmanager
def toy_cloud(context: int, settings: CloudSettings) -> Iterator[ToyCloud]:
    """A toy cloud on the cloud's core, ended with the block.

    `context` is the greatest length of a session in tokens. Raises `EdgespecError` if it does not
    start.
    """
    spawning = multiprocessing.get_context("spawn")
    here, there = spawning.Pipe()
    process = spawning.Process(
        target=_serve, args=(there, cores()[1], context, settings), daemon=True
    )
    process.start()
    try:
        if not here.poll(REPLY_TIMEOUT_S):
            raise EdgespecError("the toy cloud did not start")
        yield ToyCloud(here.recv(), process.pid or 0, here)
    finally:
        process.terminate()
        process.join()
        here.close()


def _serve(pipe: Connection, core: int, context: int, settings: CloudSettings) -> None:
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {core})
    logging.disable(logging.WARNING)  # thousands of devices come and go
    hub = RouterHub(settings.bind)
    engine = ToyEngine(context=context, layers=1)
    service = Service(Identity("toy", "toy", ()), engine, settings)
    threading.Thread(target=_tell, args=(pipe, service), daemon=True).start()
    pipe.send(hub.endpoint)
    CloudLoop(hub, service, engine, settings).run()


def _tell(pipe: Connection, service: Service) -> None:
    while True:
        pipe.recv()
        gc.collect()
        pipe.send(Kept(len(gc.get_objects()), len(service.sessions), len(service.devices)))
