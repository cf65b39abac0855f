"""`edgespec bench plan --fleet`: number of devices that one cloud serves at a target rate.

As in `bench.plan.run` the real loops and the cloud's scheduler run in virtual time. A device is
served if, after the warm-up, it reaches its target rate (tokens/s after each answer's first token)
and its mean time to the first token is at most `MAX_FIRST_TOKEN_S`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from rich.console import Console

from bench.fleet.search import MAX_FIRST_TOKEN_S, SERVED_RATIO, Search
from bench.lab.methods import CLOUD, CLOUD_DRAFT, EDGESPEC
from bench.lab.plots import check_plot_file
from bench.lab.profiles import Profile, chosen_profiles
from bench.lab.recording import Recording
from bench.lab.report import print_json
from bench.plan.figures import FleetFigures, MethodFleets, ProfileFleets, planned
from bench.plan.fleet_tables import NOTE, capacity_table, fleet_table
from bench.plan.run import check_rtts
from bench.plan.simulated_fleet import FLEET_METHODS, LOCKSTEP_ALONE, FleetRun, run_fleet
from edgespec.errors import UsageError
from edgespec.progress import Advance, progress

MAX_TARGET_RATE_TOKENS_PER_S = 1e6
DEFAULT_RUN = FleetRun()


@dataclass(frozen=True)
class FleetPlanSettings:
    profiles: tuple[Path, ...] = ()
    """Empty: the built-in profiles."""
    recording: str = ""
    """`builtin`, `self` or a file; empty: the recording of each profile."""
    run: FleetRun = DEFAULT_RUN
    target_rates: tuple[float, ...] = (15.0,)
    """Tokens/s of each device."""
    devices: tuple[int, ...] = ()
    """Fleet sizes; empty: the largest fleet that is served is searched."""
    methods: tuple[str, ...] = (CLOUD, CLOUD_DRAFT, LOCKSTEP_ALONE, EDGESPEC)
    max_devices: int = 64
    """Largest fleet that the search tries."""
    plot: Path | None = None

    def check(self) -> None:
        """Raises `UsageError` for settings that would fail after the simulation."""
        check_rtts(self.run.rtts_ms)
        if not all(0 < rate < MAX_TARGET_RATE_TOKENS_PER_S for rate in self.target_rates):
            raise UsageError("--target-rate is a list of tokens a second, as in 10,15")
        if unknown := [name for name in self.methods if name not in FLEET_METHODS]:
            raise UsageError(f"no method {unknown[0]!r}; there are {', '.join(FLEET_METHODS)}")
        if not 0 <= self.run.warm_up < self.run.seconds:
            raise UsageError(
                f"{self.run.seconds:g} virtual seconds leave nothing behind the first "
                f"{self.run.warm_up:g}"
            )
        check_plot_file(self.plot)


def run(settings: FleetPlanSettings, *, as_json: bool) -> None:
    """Simulates, prints and plots. Raises `UsageError` for a file that is not a profile."""
    settings.check()
    profiles = plan_fleets(chosen_profiles(settings.profiles, settings.recording), settings)
    console = Console(width=max(Console().width, 100))
    for each in profiles:
        if not settings.devices:
            console.print(capacity_table(each))
        for rate in each.rates if settings.devices else ():
            console.print(fleet_table(each, rate))
        console.print(f"{each.notes}\n", style="dim", highlight=False, markup=False)
    console.print(NOTE.format(MAX_FIRST_TOKEN_S), style="dim", highlight=False)
    if settings.plot:
        from bench.plan.fleet_plots import plot_fleets

        plot_fleets(settings.plot, profiles)
    if as_json:
        print_json({"fleets": profiles})


def plan_fleets(
    profiles: Sequence[tuple[Profile, Recording]], settings: FleetPlanSettings
) -> list[ProfileFleets]:
    """Fleets of each profile, by target rate and method."""
    count = sum(len(methods_for(p, settings)) * len(settings.target_rates) for p, _ in profiles)
    with progress("fleets", count, unit="fleets") as advance:
        return [_profile_fleets(*pair, settings, advance) for pair in profiles]


def methods_for(profile: Profile, settings: FleetPlanSettings) -> list[str]:
    """Methods that the hardware of a profile supports."""
    return [n for n in settings.methods if n != CLOUD_DRAFT or profile.cloud_draft_ms]


def _profile_fleets(
    profile: Profile, recording: Recording, settings: FleetPlanSettings, advance: Advance
) -> ProfileFleets:
    rates: dict[str, dict[str, MethodFleets]] = {}
    for rate in settings.target_rates:
        methods = rates.setdefault(f"{rate:g}", {})
        for name in methods_for(profile, settings):
            advance(0, f"{profile.name}, {name}")
            measure = partial(run_fleet, profile, recording, name, settings.run, rate)
            methods[name] = _method_fleets(measure, settings)
            advance(1)
    return planned(ProfileFleets, profile, recording, settings.run.rtts_ms, rates=rates)


def _method_fleets(
    measure: Callable[[int], FleetFigures], settings: FleetPlanSettings
) -> MethodFleets:
    if settings.devices:
        return MethodFleets(fleets=[measure(devices) for devices in settings.devices])
    fleets = []
    search = Search(settings.max_devices)
    while (devices := search.next()) is not None:
        fleets.append(measure(devices))
        search.tell(devices, fleets[-1].served >= SERVED_RATIO)
    fleets.sort(key=lambda each: each.devices)
    return MethodFleets(capacity=search.holds, more=search.fails is None, fleets=fleets)
