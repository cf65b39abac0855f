"""`edgespec bench fleet`: how many devices one cloud serves at their target rate.

The cloud is a real process on its core. All devices run in this process on the other core. Each is
a thread with the real loop over a real socket (`bench.fleet.devices`). Its draft is replayed from a
recording in the time that its kind of device takes (`bench.fleet.drafters`), over a link with its
round-trip time (`bench.fleet.link`). Every answer must be the recorded one, token for token.

Methods take turns, fleet size by fleet size. A fleet counts as served if 95 % of its devices get
their target rate and wait at most `MAX_FIRST_TOKEN_S` for their answers to begin, on average. The
rate is in tokens a second after the first token of each answer, over everything that a device was
answered while the window was open. The window opens when all devices have come.
"""

from __future__ import annotations

import math
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from rich.console import Console

from bench.fleet.figures import FleetCell, FleetFigures, cloud_steps, fleet_cell
from bench.fleet.generator import Generator, TimedTrial, clouds, quick_switches, serving
from bench.fleet.plots import plot_fleet
from bench.fleet.profile import FleetProfile, chosen_fleet
from bench.fleet.search import Search, explore
from bench.fleet.settings import FleetSettings
from bench.fleet.tables import capacity_table, fleet_notes, fleet_table
from bench.lab.builtin import builtin_bundle
from bench.lab.energy import note
from bench.lab.methods import CLOUD, CLOUD_DRAFT, EDGESPEC, LOCKSTEP
from bench.lab.processes import cores, pinned
from bench.lab.recording import draft_of
from bench.lab.report import print_json
from bench.lab.turns import rotated
from edgespec.energy_report import Energy
from edgespec.manifest import Bundle
from edgespec.progress import Advance, progress
from edgespec.trace import Span, read_trace
from engines.machine.doctor import describe

LEAST_WIDTH_COLUMNS = 136


def run(bundle: Path | None, settings: FleetSettings, *, as_json: bool) -> None:
    """Measure, print and plot. Raises `EdgespecError` if an answer is not the recorded one."""
    settings.check()
    profile, recording = chosen_fleet(settings.profile, settings.recording)
    opened = Bundle.open(bundle) if bundle else builtin_bundle()
    generator = Generator(opened, profile, recording, settings)
    with tempfile.TemporaryDirectory() as scratch:
        traces = {
            serving(name): Path(scratch) / f"{serving(name)}.jsonl" for name in settings.methods
        }
        # The clouds take their core before this process is left with the other one.
        with (
            clouds(opened, draft_of(recording, opened), settings, traces) as generator.clouds,
            pinned(cores()[0]),
            quick_switches(),
        ):
            trials, searches = _measure(generator, settings)
        spans = {name: read_trace(path) for name, path in traces.items()}
    figures = _figures(_cells(trials, spans), searches, recording.pair, profile, settings)
    _report(figures, settings, as_json=as_json)


def _measure(
    generator: Generator, settings: FleetSettings
) -> tuple[list[TimedTrial], dict[str, Search]]:
    """The trials in the order of measuring, and the search of each method."""
    trials: list[TimedTrial] = []
    count = len(settings.devices) * len(settings.methods)
    total = count * generator.trial_seconds if count else settings.limit_seconds
    began = time.monotonic()
    with progress("fleet", math.ceil(total), unit="seconds") as advance:

        def measure(name: str, devices: int) -> bool:
            trials.append(_timed(generator, name, devices, advance))
            return trials[-1].trial.holds

        def more() -> bool:
            return time.monotonic() - began + generator.trial_seconds <= settings.limit_seconds

        if not settings.devices:
            return trials, explore(settings.methods, settings.most, measure, more)
        searches = {name: Search(max(settings.devices)) for name in settings.methods}
        for turn, devices in enumerate(settings.devices):
            for name in rotated(settings.methods, turn):
                searches[name].tell(devices, measure(name, devices))
        return trials, searches


def _timed(generator: Generator, name: str, devices: int, advance: Advance) -> TimedTrial:
    """A trial with progress in seconds."""
    advance(0, f"{name}, {devices} devices")
    began = time.monotonic()
    trial = generator.measure(name, devices)
    advance(round(time.monotonic() - began), f"{name}, {devices} devices")
    return trial


def _cells(trials: Sequence[TimedTrial], spans: Mapping[str, Sequence[Span]]) -> list[FleetCell]:
    """Trials with the steps of their clouds, sorted by devices."""
    starts = {name: [span.start for span in trace] for name, trace in spans.items()}
    cells = []
    for each in trials:
        cloud = serving(each.trial.method)
        cells.append(fleet_cell(each.trial, cloud_steps(spans[cloud], starts[cloud], each.window)))
    return sorted(cells, key=lambda cell: cell.devices)


def _figures(
    cells: list[FleetCell],
    searches: Mapping[str, Search],
    pair: str,
    profile: FleetProfile,
    settings: FleetSettings,
) -> FleetFigures:
    capacity = {name: search.holds for name, search in searches.items()}

    def ratio(name: str) -> float | None:
        edgespec, other = capacity.get(EDGESPEC), capacity.get(name)
        return round(edgespec / other, 4) if edgespec is not None and other else None

    return FleetFigures(
        capacity=capacity,
        fails={name: search.fails for name, search in searches.items()},
        confirmed={name: search.confirmed for name, search in searches.items()},
        capacity_ratio_to_cloud=ratio(CLOUD),
        capacity_ratio_to_cloud_draft=ratio(CLOUD_DRAFT),
        capacity_ratio_to_lockstep=ratio(LOCKSTEP),
        cells=cells,
        pair=pair,
        profile=profile.name,
        target_rate=settings.target_rate or profile.target_rate,
        seconds=settings.seconds,
        methods=list(settings.methods),
        mode=settings.mode,
        machine=describe(),
    )


def _report(figures: FleetFigures, settings: FleetSettings, *, as_json: bool) -> None:
    console = Console(width=max(Console().width, LEAST_WIDTH_COLUMNS), highlight=False)
    console.print(fleet_table(figures))
    console.print(capacity_table(figures))
    console.print(fleet_notes(figures), markup=False)
    measured = {
        f"{cell.method}, {cell.devices} devices": cell.energy
        for cell in figures.cells
        if isinstance(cell.energy, Energy)
    }
    if measured:
        console.print(note(measured), markup=False)
    if settings.plot:
        settings.plot.mkdir(parents=True, exist_ok=True)
        plot_fleet(settings.plot / "fleet.png", figures)
    if as_json:
        print_json(figures)
