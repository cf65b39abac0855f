"""`edgespec bench fleet`: how many devices one cloud serves at the rate that they were promised.

The cloud is a real process on its core. All devices run in this process on the other core: each is
a thread with the real loop over a real socket, whose draft is replayed from a recording in the time
that its kind of device takes (`bench.fleet.devices`), at the end of a link as long as its round
trip (`bench.fleet.link`). Every answer must be the recorded one, token for token.

Methods take turns, fleet size by fleet size. A fleet counts as served if 95 % of its devices get
the promised rate: tokens a second after the first of each answer, over all that a device was
answered while the window was open, which is after all devices have come; and if they waited no
longer than `FIRST_TOKEN` for their answers to begin.
"""

from __future__ import annotations

import json
import math
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from bench.fleet.figures import batches, believed
from bench.fleet.generator import (
    CLOUD_DRAFT,
    LOCKSTEP,
    FleetSettings,
    Generator,
    Measured,
    clouds,
    nimble,
    serving,
)
from bench.fleet.profile import chosen_fleet
from bench.fleet.search import Search, explore, rotated
from bench.fleet.tables import capacity_table, fleet_notes, fleet_table
from bench.lab.builtin import builtin_bundle
from bench.lab.energy import note
from bench.lab.methods import CLOUD, EDGESPEC
from bench.lab.processes import cores, pinned
from edgespec.manifest import Bundle
from edgespec.progress import Advance, progress
from edgespec.trace import Span, read_trace
from engines.machine.doctor import describe


def run(bundle: Path | None, settings: FleetSettings, *, as_json: bool) -> None:
    """Measures, prints and plots. Raises `EdgespecError` if an answer is not the recorded one."""
    settings.check()
    profile, recording = chosen_fleet(settings.profile, settings.recording)
    opened = Bundle.open(bundle) if bundle else builtin_bundle()
    generator = Generator(opened, profile, recording, settings)
    measured: list[Measured] = []
    with tempfile.TemporaryDirectory() as scratch:
        traces = {
            serving(name): Path(scratch) / f"{serving(name)}.jsonl" for name in settings.methods
        }
        # The clouds take their core before this process is left with the other one.
        with clouds(opened, settings, traces) as generator.clouds, pinned(cores()[0]), nimble():
            searches = _measure(generator, settings, measured)
        spans = {name: read_trace(path) for name, path in traces.items()}
    figures = _figures(measured, searches, spans) | {
        "pair": recording.pair,
        "profile": profile.name,
        "target_rate": settings.target_rate or profile.target_rate,
        "seconds": settings.seconds,
        "methods": list(settings.methods),
        "mode": settings.mode,
        "machine": describe().as_dict(),
    }
    _report(figures, settings, as_json=as_json)


def _measure(
    generator: Generator, settings: FleetSettings, measured: list[Measured]
) -> dict[str, Search]:
    """Fills `measured`, in the order of measuring."""
    cells = len(settings.devices) * len(settings.methods)
    total = cells * generator.cell_seconds if cells else settings.limit_seconds
    began = time.monotonic()
    with progress("fleet", math.ceil(total), unit="seconds") as advance:

        def measure(name: str, devices: int) -> bool:
            return _timed(generator, name, devices, measured, advance)

        def more() -> bool:
            return time.monotonic() - began + generator.cell_seconds <= settings.limit_seconds

        if not settings.devices:
            return explore(settings.methods, settings.most, measure, more)
        searches = {name: Search(max(settings.devices)) for name in settings.methods}
        for turn, devices in enumerate(settings.devices):
            for name in rotated(settings.methods, turn):
                searches[name].tell(devices, measure(name, devices))
        return searches


def _timed(
    generator: Generator, name: str, devices: int, measured: list[Measured], advance: Advance
) -> bool:
    advance(0, f"{name}, {devices} devices")
    began = time.monotonic()
    measured.append(generator.measure(name, devices))
    advance(round(time.monotonic() - began), f"{name}, {devices} devices")
    return bool(measured[-1].figures["holds"])


def _figures(
    measured: Sequence[Measured], searches: dict[str, Search], spans: dict[str, list[Span]]
) -> dict[str, Any]:
    starts = {name: [span.start for span in trace] for name, trace in spans.items()}
    cells = []
    for each in measured:
        trace = serving(each.method)
        steps = batches(spans[trace], starts[trace], each.window)
        cells.append(believed(each.figures | steps))
    capacity = {name: search.holds for name, search in searches.items()}

    def ratio(name: str) -> float | None:
        ours, theirs = capacity.get(EDGESPEC), capacity.get(name)
        return round(ours / theirs, 4) if ours is not None and theirs else None

    return {
        "capacity": capacity,
        "fails": {name: search.fails for name, search in searches.items()},
        "confirmed": {name: search.confirmed for name, search in searches.items()},
        "capacity_ratio_to_cloud": ratio(CLOUD),
        "capacity_ratio_to_cloud_draft": ratio(CLOUD_DRAFT),
        "capacity_ratio_to_lockstep": ratio(LOCKSTEP),
        "cells": sorted(cells, key=lambda cell: cell["devices"]),
    }


def _report(figures: dict[str, Any], settings: FleetSettings, *, as_json: bool) -> None:
    console = Console(width=max(Console().width, 130), highlight=False)
    console.print(fleet_table(figures))
    console.print(capacity_table(figures))
    console.print(fleet_notes(figures), markup=False)
    measured = {
        f"{cell['method']}, {cell['devices']} devices": cell["energy"]
        for cell in figures["cells"]
        if "energy" in cell
    }
    if measured:
        console.print(note(measured), markup=False)
    if settings.plot:
        from bench.fleet.plots import plot_fleet

        settings.plot.mkdir(parents=True, exist_ok=True)
        plot_fleet(settings.plot / "fleet.png", figures)
    if as_json:
        print(json.dumps(figures), flush=True)
