"""The process of a device: `python -m bench.chaos.device_process OPTIONS`.

`OPTIONS` is a `DeviceOptions` as JSON. The process is the client without a bundle: the real loop in
its thread, over a real link. Each line that it prints is a `Report`. After SIGTERM it finishes the
answers in flight and ends.
"""

from __future__ import annotations

import random
import signal
import sys
import threading
import time
from pathlib import Path
from typing import NamedTuple

import msgspec

from bench.chaos.orphan import end_with_runner
from bench.chaos.settings import DeviceOptions
from bench.chaos.toy import CONTEXT_TOKENS, DRAFT, TACTICS, any_drafter, any_request, hello
from edge_runtime.background import BackgroundLoop
from edge_runtime.completion import Completion
from edge_runtime.handshake import DeviceIdentity
from edge_runtime.loop import EdgeLoop
from edge_runtime.wakeable_link import WakeableLink
from edgespec.config import EdgeSettings, Request
from edgespec.errors import EdgespecError, LinkError

CLIENT_ANSWERS = 4
"""Answers of each thread after which the device connects anew, with other tactics."""
RETRY_S = 0.2
OFFLINE_SHARE = 0.5
"""Share of the devices with a draft model that go on without the cloud."""
OFFLINE_AFTER_S = 0.5


class Report(msgspec.Struct, frozen=True):
    """One answer of a device: when it starts (`tokens` is None), and when it has ended."""

    session: int
    request: Request
    began: float
    """Seconds of the machine's monotonic clock, as are `times`."""
    tokens: list[int] | None = None
    times: list[float] = []
    """Time of each token."""
    error: str = ""
    resumed: int = 0
    unverified: int = 0
    """Tokens after `tokens` that the draft wrote alone, since no cloud came back in time."""


_lock = threading.Lock()


def _tell(report: Report) -> None:
    with _lock:
        print(msgspec.json.encode(report).decode(), flush=True)


class _Client(NamedTuple):
    loop: EdgeLoop
    background: BackgroundLoop


def _connect(options: DeviceOptions, chance: random.Random) -> _Client | None:
    """Greets the cloud with settings drawn at random. None if it cannot be reached now."""
    drafter = any_drafter(chance)
    alone = drafter.name == DRAFT and chance.random() < OFFLINE_SHARE
    settings = EdgeSettings(
        offline="draft" if alone else "refuse",
        offline_after=OFFLINE_AFTER_S,
        connect=options.connect,
        mode=chance.choice(["auto", "auto", "edge", "cloud-draft", "cloud"]),
        tactics=chance.choice(TACTICS),
        draft_length=chance.randint(1, 6),
        server_key=Path(options.server_key) if options.server_key else None,
        key=Path(options.key) if options.key else None,
    )
    link = WakeableLink(settings)
    try:
        identity = DeviceIdentity(hello(options.name), context=CONTEXT_TOKENS)
        loop = EdgeLoop.connect(link, drafter, identity, settings)
    except LinkError as error:
        link.close()
        if not error.retryable:
            raise
        return None
    return _Client(loop, BackgroundLoop(loop, link))


def _answer(client: _Client, request: Request) -> None:
    answer = client.loop.start(request)
    began = time.monotonic()
    _tell(Report(answer.session_id, request, began))
    tokens: list[int] = []
    times: list[float] = []
    error = ""
    try:
        for piece in Completion(client.background, answer):
            if piece.origin == "unverified":
                continue
            tokens.append(piece.token)
            times.append(round(piece.at, 4))
    except EdgespecError as caught:
        error = f"{type(caught).__name__}: {caught}"
    stats = answer.stats
    about = stats.resumed, stats.unverified
    _tell(Report(answer.session_id, request, began, tokens, times, error, *about))


def main() -> None:
    end_with_runner()
    options = msgspec.json.decode(sys.argv[1], type=DeviceOptions)
    stopping = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stopping.set())
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the runner ends this process
    chance = random.Random(options.seed)
    while not stopping.is_set():
        client = _connect(options, chance)
        if client is None:
            time.sleep(RETRY_S)
            continue

        def ask(client: _Client, chance: random.Random) -> None:
            for _ in range(CLIENT_ANSWERS):
                if not stopping.is_set():
                    _answer(client, any_request(chance))

        threads = [
            threading.Thread(target=ask, args=(client, random.Random(chance.getrandbits(62))))
            for _ in range(options.answers)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        client.background.close()


if __name__ == "__main__":
    main()
