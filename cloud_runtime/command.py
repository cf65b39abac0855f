"""`edgespec cloud-run`: loads a target and serves it until told to stop."""

from __future__ import annotations

import logging
import signal

from cloud_runtime.server import CloudLoop
from cloud_runtime.service import Identity, Service
from cloud_runtime.warmup import measure
from edgespec.config import CloudSettings, usable_cores
from edgespec.manifest import Bundle
from edgespec.trace import Trace
from edgespec.transport import RouterHub
from engines.drafting import Drafter, ModelDrafter
from engines.ort import OrtSettings, device_settings, load_draft, load_target

log = logging.getLogger("edgespec.cloud")


def cloud_run(bundle: Bundle, settings: CloudSettings) -> None:
    """Blocks until SIGTERM (drains) or SIGINT (stops). Raises edgespec's errors."""
    if settings.draft:
        bundle.draft(settings.draft)
    trace = Trace(settings.trace, "cloud") if settings.trace else None
    hub = RouterHub(settings.bind, settings.key)
    try:
        manifest = bundle.manifest
        log.info("loading %s from %s", manifest.target.origin.name, bundle.folder)
        threads = settings.threads or usable_cores()
        engine = load_target(bundle, OrtSettings(threads=threads, slots=settings.max_sessions))
        drafter = _drafter(bundle, settings, threads)
        exits = tuple(manifest.target.exits) if settings.hints else ()
        speeds = measure(engine, drafter, hints=bool(exits))
        identity = Identity(manifest.target_fingerprint, manifest.text.fingerprint, exits)
        service = Service(identity, engine, settings, speeds)
        loop = CloudLoop(hub, service, engine, settings, drafter=drafter, trace=trace)
        signal.signal(signal.SIGTERM, lambda *_: loop.request_drain())
        log.info(
            "a step takes %.1f ms and %.1f more for each drafted token%s",
            1e3 * speeds.costs.step(1),
            1e3 * (speeds.costs.step(2) - speeds.costs.step(1)),
            f"; the draft beside takes {1e3 * speeds.beside:.1f} ms" if drafter else "",
        )
        log.info("listening on %s", hub.endpoint)
        loop.run()
        log.info("stopped")
    finally:
        hub.close()
        if trace:
            trace.close()


def _drafter(bundle: Bundle, settings: CloudSettings, threads: int) -> Drafter | None:
    """The draft beside the target; a slot for every session, so that each keeps its cache."""
    if not settings.draft:
        return None
    log.info("loading the draft %s", settings.draft)
    slots = settings.max_sessions
    engine = load_draft(bundle, settings.draft, device_settings(settings.draft, threads, slots))
    calibration = bundle.draft(settings.draft).calibration
    return ModelDrafter(engine, settings.draft, calibration, slots=slots)
