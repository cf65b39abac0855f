"""`edgespec cloud-run`: loads a target and serves it until told to stop."""

from __future__ import annotations

import logging
import signal

from cloud_runtime.server import CloudLoop
from cloud_runtime.service import Identity, Service
from edgespec.config import CloudSettings, usable_cores
from edgespec.manifest import Bundle
from edgespec.transport import RouterHub
from engines.ort import OrtSettings, load_target

log = logging.getLogger("edgespec.cloud")


def cloud_run(bundle: Bundle, settings: CloudSettings) -> None:
    """Blocks until SIGTERM (drains) or SIGINT (stops). Raises edgespec's errors."""
    hub = RouterHub(settings.bind, settings.key)
    try:
        manifest = bundle.manifest
        log.info("loading %s from %s", manifest.target.origin.name, bundle.folder)
        threads = settings.threads or usable_cores()
        engine = load_target(bundle, OrtSettings(threads=threads, slots=settings.max_sessions))
        identity = Identity(
            manifest.target_fingerprint, manifest.text.fingerprint, tuple(manifest.target.exits)
        )
        loop = CloudLoop(hub, Service(identity, engine, settings), engine, settings)
        signal.signal(signal.SIGTERM, lambda *_: loop.request_drain())
        log.info("listening on %s", hub.endpoint)
        loop.run()
        log.info("stopped")
    finally:
        hub.close()
