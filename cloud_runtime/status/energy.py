"""Energy of the cloud's machine while it serves, for `cloud-run --energy`."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from cloud_runtime.service import Service
from edgespec.logs import Note
from engines.machine.energy.meter import EnergyMeter
from engines.machine.energy.sensors import find

if TYPE_CHECKING:
    from cloud_runtime.status.server import Status  # needs the extra `cloud`

log = logging.getLogger("edgespec.cloud")


@contextmanager
def metered(root: Path | None, service: Service, status: Status | None) -> Iterator[None]:
    """Measure energy while the block runs, with the sensors below `root`; log the total and the
    energy per committed token at the end. `status` shows it meanwhile. No effect without `root`."""
    if root is None:
        yield
        return
    sensors, before = find(root), service.tally.tokens
    log.info("energy: %s", sensors.describe())
    meter = EnergyMeter(sensors)
    try:
        with meter:
            if status is not None:
                status.meter = meter
            yield
    finally:
        energy = meter.energy(service.tally.tokens - before)
        figures = {"energy": energy.figures()}
        for sentence in energy.lines():
            Note(logging.INFO, sentence, figures).write(log)
