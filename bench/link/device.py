"""The device's side of every method: one link, one draft, and a loop for each method."""

from __future__ import annotations

import gc
import time
from collections.abc import Mapping
from itertools import pairwise

from bench.lab.methods import EDGESPEC, Method
from bench.lab.useless import UselessDrafter
from bench.link.emulator import EmulatedLink
from bench.link.figures import StepTimes
from bench.link.shape import LinkShape
from edge_runtime.drafters import open_drafter
from edge_runtime.handshake import DeviceIdentity
from edge_runtime.loop import EdgeLoop
from edge_runtime.observer import Observer
from edgespec.config import EdgeSettings, Request
from edgespec.manifest import Bundle
from edgespec.telemetry import AnswerStats
from edgespec.trace import Trace
from edgespec.transport import DealerLink
from engines.drafters.base import Drafter
from engines.drafters.none import NoDrafter


class LinkedDevice:
    """A device at the end of an emulated link."""

    def __init__(
        self, bundle: Bundle, profile: str, link: EmulatedLink, draft_length: int, trace: Trace
    ) -> None:
        self._bundle = bundle
        self._link = link
        self._draft_length = draft_length
        self._trace = trace
        self._dealer = DealerLink(link.endpoint)
        self._drafter = open_drafter(bundle, profile, 1)
        self._loops: dict[str, EdgeLoop] = {}

    def at(self, shape: LinkShape, methods: Mapping[str, Method]) -> dict[str, EdgeLoop]:
        """New loops over a link of that shape, without measurements of any earlier shape."""
        self._link.shape(shape)
        self._loops = {name: self._loop(method) for name, method in methods.items()}
        return self._loops

    def _loop(self, method: Method) -> EdgeLoop:
        settings = EdgeSettings(
            mode=method.mode, tactics=method.tactics, draft_length=self._draft_length
        )
        drafter: Drafter = self._drafter if method.drafts_on_device else NoDrafter()
        return EdgeLoop.connect(
            self._dealer,
            UselessDrafter(drafter) if method.useless else drafter,
            DeviceIdentity.of(self._bundle, "bench"),
            settings,
            Observer(trace=self._trace),
        )

    def times(self) -> StepTimes:
        """Step times that cloud and device have measured, with edgespec's method if it ran."""
        loop = self._loops.get(EDGESPEC) or next(iter(self._loops.values()))
        welcome, timings = loop.welcome, loop.modes.measurements.timings
        return StepTimes(
            target_ms=welcome.step_ms,
            token_ms=welcome.token_ms,
            cloud_draft_ms=welcome.draft_ms,
            hint_ms=welcome.hint_ms,
            draft_ms=1e3 * timings.draft,
            batch=list(timings.together),
        )

    def close(self) -> None:
        self._dealer.close()
        self._trace.close()


def answer(loop: EdgeLoop, request: Request) -> tuple[AnswerStats, list[float]]:
    """One answer, and the seconds between its tokens."""
    gc.collect()
    written = loop.start(request)
    times = [time.monotonic() for _ in loop.write(written)]
    return written.stats, [b - a for a, b in pairwise(times)]
