"""`edgespec cloud-run`: loads a target and serves it until asked to stop."""

from __future__ import annotations

import logging
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from types import FrameType
from typing import TYPE_CHECKING, NamedTuple

from cloud_runtime.memory.limits import default_limit, share_of
from cloud_runtime.quotas import Quotas, read_quotas
from cloud_runtime.server import CloudLoop
from cloud_runtime.service import Identity, Service
from cloud_runtime.status.energy import metered
from cloud_runtime.warmup import measure
from edgespec.config import CloudSettings, usable_cores
from edgespec.errors import UsageError
from edgespec.grammars import Grammars
from edgespec.manifest import Bundle
from edgespec.protocol import largest_packet
from edgespec.trace import Trace
from edgespec.transport import RouterHub, is_loopback
from engines.backends import open_draft, open_target
from engines.base import Engine
from engines.drafters.model import ModelDrafter
from engines.machine.arithmetic import fingerprint
from engines.machine.threads import draft_model, target_model, tuned_threads
from engines.staged import StagedEngine

if TYPE_CHECKING:
    from cloud_runtime.status.server import Status

log = logging.getLogger("edgespec.cloud")


def cloud_run(bundle: Bundle, settings: CloudSettings) -> None:
    """Serves until SIGTERM or SIGINT, which drain.

    A second SIGINT hands unfinished answers back at once and raises `KeyboardInterrupt`. Raises
    edgespec's errors.
    """
    if settings.draft:
        bundle.draft(settings.draft)
    with _status(bundle.manifest.target.origin.name, settings) as status:
        _serve(bundle, settings, status)


@contextmanager
def _status(target: str, settings: CloudSettings) -> Iterator[Status | None]:
    """Opens the status port, if one is configured, before anything is loaded."""
    if not settings.status:
        yield None
        return
    from cloud_runtime.status.server import Status, StatusServer  # needs the extra `cloud`

    status = Status(target)
    server = StatusServer(settings.status, status, settings.status_host)
    log.info("status on %s", server.url)
    try:
        yield status
    finally:
        server.close()


def _serve(bundle: Bundle, settings: CloudSettings, status: Status | None) -> None:
    """Loads the models and runs the loop until it is drained."""
    trace = Trace(settings.trace, "cloud") if settings.trace else None
    manifest = bundle.manifest
    named = settings.clients or settings.any_client
    if settings.key and not (is_loopback(settings.bind) or named):
        raise UsageError(
            f"{settings.bind} can be reached from other machines; name the devices that may "
            "connect with --clients FOLDER, or admit all that know the public key with --any-client"
        )
    quotas = read_quotas(settings.device_quota) if settings.device_quota else {}
    grammars = Grammars.of(bundle, settings.grammars)
    hub = RouterHub(
        settings.bind,
        settings.key,
        clients=settings.clients,
        packet_bytes=largest_packet(manifest.context),
        limits=settings.limits,
    )
    try:
        log.info("loading %s from %s", manifest.target.origin.name, bundle.folder)
        models = _load(bundle, settings)
        engine, settings = models.engine, models.settings
        quota = Quotas(quotas, hub.name_of, settings.limits)
        service = _service(bundle, models, quota, grammars)
        loop = CloudLoop(
            hub, service, engine, settings, drafter=models.drafter, trace=trace, status=status
        )
        interrupted = _drain_on_signals(loop)
        if status is not None:
            status.listening(service, hub.endpoint)
        log.info("listening on %s", hub.endpoint)
        with metered(settings.energy, service, status):
            loop.run()
        log.info("stopped")
        if len(interrupted) > 1:
            raise KeyboardInterrupt
    finally:
        hub.close()
        grammars.close()
        if trace:
            trace.close()


class _Models(NamedTuple):
    engine: StagedEngine
    drafter: ModelDrafter | None
    settings: CloudSettings
    """The settings with the target's share of the KV cache."""


def _load(bundle: Bundle, settings: CloudSettings) -> _Models:
    """Loads the target and the cloud draft, and divides the KV cache between them."""
    tuned = tuned_threads(bundle, target_model(settings.backend))
    threads = settings.threads or tuned or usable_cores()
    engine = open_target(bundle, settings.backend, threads)
    cloud_draft = _cloud_draft(bundle, settings)
    memory = settings.kv_memory or default_limit(engine)
    share = share_of(memory, engine, cloud_draft)
    settings = replace(settings, kv_memory=memory - share)
    engine.limit(settings.kv_memory)
    drafter = None
    if cloud_draft is not None:
        cloud_draft.limit(share)
        calibration = bundle.draft(settings.draft).calibration
        drafter = ModelDrafter(
            cloud_draft, settings.draft, calibration, branches=1, memory_bytes=share
        )
    return _Models(engine, drafter, settings)


def _service(bundle: Bundle, models: _Models, quotas: Quotas, grammars: Grammars) -> Service:
    """Measures step times and puts the service together."""
    manifest, engine, settings = bundle.manifest, models.engine, models.settings
    exits = tuple(manifest.target.exits) if settings.hints else ()
    speeds = measure(engine, models.drafter, hints=bool(exits), policy=settings.scheduler)
    arithmetic = fingerprint(settings.backend, manifest.target.precisions)
    identity = Identity(manifest.target_fingerprint, manifest.text.fingerprint, exits, arithmetic)
    service = Service(identity, engine, settings, speeds, quotas, grammars)
    if service.memory.context < engine.context:
        log.warning(
            "--kv-memory holds at most %d tokens of a session, prompt included; the target "
            "could have %d", service.memory.context, engine.context,
        )  # fmt: skip
    log.info("arithmetic: %s", arithmetic)
    log.info(
        "a step takes %.1f ms and %.1f more for each draft token%s",
        1e3 * speeds.costs.step(1),
        1e3 * (speeds.costs.step(3) - speeds.costs.step(2)),
        f"; a step of the cloud draft takes {1e3 * speeds.cloud_draft.step(1):.1f} ms"
        if speeds.cloud_draft
        else "",
    )
    return service


def _drain_on_signals(loop: CloudLoop) -> list[int]:
    """SIGTERM and the first SIGINT drain.

    The second SIGINT stops after the step that runs, the third one at once. Returns a list that
    grows with each SIGINT.
    """
    interrupts: list[int] = []

    def interrupted(number: int, _: FrameType | None) -> None:
        interrupts.append(number)
        if len(interrupts) == 1:
            log.info("interrupted; once more to stop without finishing")
            loop.request_drain()
        elif len(interrupts) == 2:
            loop.request_stop()
        else:
            raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, lambda *_: loop.request_drain())
    signal.signal(signal.SIGINT, interrupted)
    return interrupts


def _cloud_draft(bundle: Bundle, settings: CloudSettings) -> Engine | None:
    """Loads the cloud draft, if one is configured."""
    if not settings.draft:
        return None
    log.info("loading the draft %s", settings.draft)
    tuned = tuned_threads(bundle, draft_model(settings.draft))
    return open_draft(bundle, settings.draft, settings.threads or tuned or usable_cores(), 1)
