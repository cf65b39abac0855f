"""The process of a cloud: `python -m bench.chaos.cloud_process OPTIONS`, a `CloudOptions` as JSON.

It is the real loop over a real socket, with a toy target. It prints "ready" once it listens.
"""

from __future__ import annotations

import signal
import sys
from pathlib import Path

import msgspec

from bench.chaos.orphan import end_with_runner
from bench.chaos.settings import CloudOptions
from bench.chaos.toy import CONTEXT_TOKENS, STEP_S, cloud_draft, paced_target
from cloud_runtime.costs import Speeds, StepCosts
from cloud_runtime.server import CloudLoop
from cloud_runtime.service import Identity, Service
from edgespec.config import CloudSettings
from edgespec.logs import configure
from edgespec.protocol import largest_packet
from edgespec.transport import RouterHub

IDLE_TIMEOUT_S = 5.0
"""Short, so that sessions of devices that were killed leave their places."""
DRAIN_TIMEOUT_S = 0.2


def _drain(loop: CloudLoop) -> None:
    print("asked to drain", file=sys.stderr, flush=True)
    loop.request_drain()


def main() -> None:
    end_with_runner()
    options = msgspec.json.decode(sys.argv[1], type=CloudOptions)
    configure("text", "warning")
    settings = CloudSettings(
        bind=options.bind,
        key=Path(options.key) if options.key else None,
        clients=Path(options.clients) if options.clients else None,
        max_sessions=options.max_sessions,
        kv_memory=options.kv_memory,
        hints=options.hints,
        idle_timeout=IDLE_TIMEOUT_S,
        drain_timeout=DRAIN_TIMEOUT_S,
    )
    engine = paced_target()
    drafter = cloud_draft() if options.cloud_draft else None
    costs = StepCosts((STEP_S, 0.0, 0.0, 0.0))
    speeds = Speeds(costs=costs, cloud_draft=costs if drafter else None)
    hub = RouterHub(
        options.bind,
        settings.key,
        clients=settings.clients,
        packet_bytes=largest_packet(CONTEXT_TOKENS),
    )
    exits = (1, 2) if options.hints else ()
    service = Service(Identity("toy", "toy", exits), engine, settings, speeds)
    loop = CloudLoop(hub, service, engine, settings, drafter=drafter)
    signal.signal(signal.SIGTERM, lambda *_: _drain(loop))
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the runner ends this process
    print("ready", flush=True)
    loop.run()
    hub.close()


if __name__ == "__main__":
    main()
