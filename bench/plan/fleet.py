"""`edgespec bench plan --fleet`: how many devices one cloud serves at a promised rate.

As `bench.plan.run`, with many devices on one cloud: the real loops and the cloud's own scheduler in
virtual time. A device is served if, once warm, it has its rate (tokens a second after each
answer's first) and waits no longer than `MAX_FIRST_TOKEN_S` for an answer to begin, on average.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
from rich.console import Console

from bench.fleet.search import MAX_FIRST_TOKEN_S, SERVED_RATIO, Search
from bench.lab.methods import CLOUD, EDGESPEC, METHODS
from bench.lab.percentile import percentile
from bench.lab.plots import check_plot_file
from bench.lab.profiles import Profile, chosen_profiles
from bench.lab.recording import Recording
from bench.plan.fleet_tables import NOTE, capacity_table, fleet_table
from bench.plan.run import LONGEST_TRIP
from bench.plan.tables import plan_notes
from bench.simulation.simulate import SimulatedDevice, simulate_fleet
from bench.simulation.stats import FleetStats
from edgespec.config import CloudSettings, EdgeSettings
from edgespec.errors import UsageError
from edgespec.progress import Advance, progress

ARRIVAL = 1.0
"""Seconds in which all devices come."""
ONE = "lockstep one at a time"
FLEET_METHODS = {
    CLOUD: METHODS[CLOUD],
    "cloud-draft": METHODS["cloud-draft"],
    ONE: METHODS["lockstep"],
    "lockstep": METHODS["lockstep"],
    EDGESPEC: METHODS[EDGESPEC],
}
"""`lockstep` shares steps between the devices; one at a time it does not."""


@dataclass(frozen=True)
class FleetPlan:
    profiles: tuple[Path, ...] = ()
    """Empty: the built-in ones."""
    recording: str = ""
    """`builtin`, `self` or a file; empty: what each profile says."""
    rtts_ms: tuple[float, ...] = (25.0,)
    """The devices take them in turn."""
    rates: tuple[float, ...] = (15.0,)
    """Tokens a second that the devices are promised."""
    devices: tuple[int, ...] = ()
    """Sizes of fleets; empty: the largest that is served is searched."""
    methods: tuple[str, ...] = (CLOUD, "cloud-draft", ONE, EDGESPEC)
    most: int = 64
    """Devices, beyond which nobody searches."""
    seconds: float = 10.0
    """Virtual ones of each run."""
    warm_up: float = 3.0
    """Of them, what is not looked at."""
    think_seconds: float = 0.0
    """Between two answers of a device, on average."""
    seed: int = 0
    plot: Path | None = None

    def check(self) -> None:
        """Raises `UsageError` for what would fail only once all has been simulated."""
        for rtt in self.rtts_ms:
            if not 0 <= rtt <= LONGEST_TRIP:
                raise UsageError(f"an RTT of {rtt:g} ms; it must be from 0 to {LONGEST_TRIP:g}")
        if not all(0 < rate < 1e6 for rate in self.rates):
            raise UsageError("--target-rate is a list of tokens a second, as in 10,15")
        if unknown := [name for name in self.methods if name not in FLEET_METHODS]:
            raise UsageError(f"no method {unknown[0]!r}; there are {', '.join(FLEET_METHODS)}")
        if not 0 <= self.warm_up < self.seconds:
            raise UsageError(
                f"{self.seconds:g} virtual seconds leave nothing behind the first {self.warm_up:g}"
            )
        check_plot_file(self.plot)


class FleetFigures(msgspec.Struct, frozen=True):
    """What came of one fleet."""

    devices: int
    served: float
    """Share of the devices."""
    tokens_per_s: float
    """Of a device, on average."""
    p5_tokens_per_s: float
    """What all but one device in twenty have."""
    p95_first_token_ms: float
    busy: float
    """Share of the time in which the target runs."""
    drafting: float
    """Share of the time in which the draft beside it runs."""
    handling: float
    """Share of the time in which the cloud handles messages."""
    rows: float
    """Of a step of the target, on average."""


def run(settings: FleetPlan, *, as_json: bool) -> None:
    """Simulates, prints and plots. Raises `UsageError` for a profile that is none."""
    settings.check()
    figures = plan_fleets(chosen_profiles(settings.profiles, settings.recording), settings)
    console = Console(width=max(Console().width, 100))
    for each in figures:
        if not settings.devices:
            console.print(capacity_table(each))
        for rate in each["rates"] if settings.devices else ():
            console.print(fleet_table(each, rate))
        console.print(f"{plan_notes(each)}\n", style="dim", highlight=False, markup=False)
    console.print(NOTE.format(MAX_FIRST_TOKEN_S), style="dim", highlight=False)
    if settings.plot:
        from bench.plan.fleet_plots import plot_fleets

        plot_fleets(settings.plot, figures)
    if as_json:
        print(json.dumps({"fleets": figures}))


def plan_fleets(
    profiles: Sequence[tuple[Profile, Recording]], settings: FleetPlan
) -> list[dict[str, Any]]:
    """What came of the fleets of each profile, by promised rate and method."""
    cells = sum(len(methods_for(p, settings)) * len(settings.rates) for p, _ in profiles)
    with progress("fleets", cells, unit="fleets") as advance:
        return [_figures(*pair, settings, advance) for pair in profiles]


def methods_for(profile: Profile, settings: FleetPlan) -> list[str]:
    """Those that there are on this hardware."""
    return [n for n in settings.methods if n != "cloud-draft" or profile.cloud_draft_ms]


def _figures(
    profile: Profile, recording: Recording, settings: FleetPlan, advance: Advance
) -> dict[str, Any]:
    rates: dict[str, Any] = {}
    for rate in settings.rates:
        methods = rates.setdefault(f"{rate:g}", {})
        for name in methods_for(profile, settings):
            advance(0, f"{profile.name}, {name}")
            measure = partial(fleet, profile, recording, name, settings, rate)
            methods[name] = _method(measure, settings)
            advance(1)
    return {
        "name": profile.name,
        "source": profile.source,
        "recording": recording.pair,
        "agreement": round(recording.agreement, 4),
        "prompts": len(recording.answers),
        "rtts_ms": list(settings.rtts_ms),
        "rates": rates,
    }


def _method(measure: Callable[[int], FleetFigures], settings: FleetPlan) -> dict[str, Any]:
    fleets: list[FleetFigures] = []
    if settings.devices:
        fleets = [measure(devices) for devices in settings.devices]
        return {"fleets": msgspec.to_builtins(fleets)}
    search = Search(settings.most)
    while (devices := search.next()) is not None:
        fleets.append(measure(devices))
        search.tell(devices, fleets[-1].served >= SERVED_RATIO)
    fleets.sort(key=lambda each: each.devices)
    return {
        "capacity": search.holds,
        "more": search.fails is None,
        "fleets": msgspec.to_builtins(fleets),
    }


def fleet(
    profile: Profile,
    recording: Recording,
    name: str,
    settings: FleetPlan,
    rate: float,
    devices: int,
) -> FleetFigures:
    """So many devices on one cloud, promised a rate."""
    method = FLEET_METHODS[name]
    edge = EdgeSettings(
        mode=method.mode, tactics=method.tactics, draft_length=profile.draft_length,
        target_rate=rate,
    )  # fmt: skip
    chance = random.Random(settings.seed)
    each = SimulatedDevice(
        edge, profile.draft_ms, batch=profile.batch, drafts=method.mode in ("auto", "edge"),
        think_seconds=settings.think_seconds,
    )  # fmt: skip
    fleet = [
        replace(
            each,
            rtt_ms=settings.rtts_ms[number % len(settings.rtts_ms)],
            start=chance.uniform(0, ARRIVAL),
        )
        for number in range(devices)
    ]
    rows = 1 if name == ONE else 0
    cloud = CloudSettings(max_sessions=2 * devices, max_batch_rows=rows)
    stats = simulate_fleet(
        recording, profile.times(0.0), fleet, cloud=cloud, seconds=settings.seconds,
        warm_up=settings.warm_up, seed=settings.seed,
    )  # fmt: skip
    return _summary(stats, rate)


def _summary(stats: FleetStats, rate: float) -> FleetFigures:
    rates = stats.rates
    return FleetFigures(
        devices=len(rates),
        served=round(stats.served(rate, MAX_FIRST_TOKEN_S), 4),
        tokens_per_s=round(sum(rates) / len(rates), 3),
        p5_tokens_per_s=round(percentile(rates, 0.05), 3),
        p95_first_token_ms=round(1e3 * percentile(stats.first_tokens, 0.95), 1),
        busy=round(stats.busy, 3),
        drafting=round(stats.drafting, 3),
        handling=round(stats.handling, 3),
        rows=round(stats.mean_batch_rows, 2),
    )
