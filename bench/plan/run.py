"""`edgespec bench plan`: speed of each method on hardware that is described by step times.

The real loops of device and cloud run in virtual time, with the answers of a recorded pair, or of a
synthetic pair of given agreement, and step times from a profile. Speeds are simulated tokens/s
after each answer's first token. `sketch` is an upper bound for streaming (`bench.plan.sketch`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from bench.lab.methods import CLOUD_DRAFT, EXITS, METHODS, Method
from bench.lab.plots import check_plot_file
from bench.lab.profiles import Profile, chosen_profiles
from bench.lab.recording import Recording, excerpt
from bench.lab.report import print_json
from bench.plan.figures import ProfilePlan, planned, ratios_to_cloud
from bench.plan.sketch import sketch
from bench.plan.tables import SKETCH, SKETCH_NOTE, plan_table
from bench.simulation.simulate import simulate
from bench.simulation.times import Times
from edgespec.config import EdgeSettings
from edgespec.errors import UsageError
from edgespec.progress import progress
from edgespec.telemetry import AnswerStats, speed

MAX_RTT_MS = 5000.0
"""Largest round-trip time; with a longer one a device would take the cloud for unreachable."""


def check_rtts(rtts_ms: Sequence[float]) -> None:
    """Raises `UsageError` for a round-trip time that cannot be simulated."""
    for rtt in rtts_ms:
        if not 0 <= rtt <= MAX_RTT_MS:
            raise UsageError(f"an RTT of {rtt:g} ms; it must be from 0 to {MAX_RTT_MS:g}")


@dataclass(frozen=True)
class PlanSettings:
    profiles: tuple[Path, ...] = ()
    """Empty: the built-in profiles."""
    recording: str = ""
    """`builtin`, `self` or a file; empty: the recording of each profile."""
    rtts_ms: tuple[float, ...] = ()
    """Empty: the round-trip times of each profile."""
    prompts: int = 12
    """Most recorded prompts to answer."""
    plot: Path | None = None

    def check(self) -> None:
        """Raises `UsageError` for settings that would fail after the simulation."""
        check_rtts(self.rtts_ms)
        check_plot_file(self.plot)


def run(settings: PlanSettings, *, as_json: bool) -> None:
    """Simulates, prints and plots. Raises `UsageError` for a file that is not a profile."""
    settings.check()
    plans = plan(chosen_profiles(settings.profiles, settings.recording), settings)
    console = Console(width=max(Console().width, 100))
    for each in plans:
        console.print(plan_table(each))
        console.print(f"{each.notes}\n", style="dim", highlight=False, markup=False)
    console.print(SKETCH_NOTE, style="dim")
    if settings.plot:
        from bench.plan.plots import plot_plan

        plot_plan(settings.plot, plans)
    if as_json:
        print_json({"profiles": plans})


def plan(
    profiles: Sequence[tuple[Profile, Recording]], settings: PlanSettings
) -> list[ProfilePlan]:
    """Speeds of each method at each round-trip time, for each profile."""
    simulations = sum(
        len(settings.rtts_ms or profile.rtt_ms) * len(methods_for(profile))
        for profile, _ in profiles
    )
    with progress("simulations", simulations, unit="simulations") as advance:
        plans = []
        for profile, recording in profiles:
            rtts = settings.rtts_ms or profile.rtt_ms
            chosen = excerpt(recording, settings.prompts)
            speeds: dict[str, dict[str, float]] = {}
            for rtt in rtts:
                times, row = profile.times(rtt), speeds.setdefault(f"{rtt:g}", {})
                for name, method in methods_for(profile).items():
                    row[name] = speed(answers(chosen, times, method, profile.draft_length))
                    advance(1, profile.name)
                row[SKETCH] = sketch(
                    chosen.agreement, profile.target_ms, profile.token_ms, profile.draft_ms, rtt
                )
            plans.append(_plan(profile, chosen, rtts, speeds))
    return plans


def methods_for(profile: Profile) -> dict[str, Method]:
    """The baselines that the hardware of a profile supports, and edgespec."""
    missing = {EXITS: not profile.exits, CLOUD_DRAFT: not profile.cloud_draft_ms}
    return {name: method for name, method in METHODS.items() if not missing.get(name)}


def answers(
    recording: Recording, times: Times, method: Method, draft_length: int
) -> list[AnswerStats]:
    """Simulated answers of one device to the recorded prompts."""
    settings = EdgeSettings(mode=method.mode, tactics=method.tactics, draft_length=draft_length)
    return simulate(
        recording, times, settings, drafts=method.drafts_on_device, useless=method.useless
    )


def _plan(
    profile: Profile,
    recording: Recording,
    rtts_ms: Sequence[float],
    speeds: dict[str, dict[str, float]],
) -> ProfilePlan:
    return planned(
        ProfilePlan,
        profile,
        recording,
        rtts_ms,
        methods=[*methods_for(profile), SKETCH],
        tokens_per_s={
            rtt: {name: round(value, 3) for name, value in row.items()}
            for rtt, row in speeds.items()
        },
        ratio_to_cloud={
            rtt: ratios_to_cloud(row, SKETCH, profile.target_ms) for rtt, row in speeds.items()
        },
    )
