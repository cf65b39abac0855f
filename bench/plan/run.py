"""`edgespec bench plan`: what each way of answering would be worth on hardware that is not here.

The real loops of device and cloud run in virtual time over a recorded pair, or over a synthetic one
of given agreement, with step times from a profile. Speeds are simulated tokens a
second after each answer's first; `sketch` is an upper bound for streaming alone
(`bench.plan.sketch`).
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from bench.lab.methods import CLOUD, METHODS, Method
from bench.lab.plots import check_plot_file
from bench.lab.profiles import Profile, chosen_profiles
from bench.lab.recording import Recording, excerpt
from bench.plan.sketch import sketch
from bench.plan.tables import SKETCH_NOTE, plan_notes, plan_table
from bench.simulation.simulate import simulate
from bench.simulation.times import Times
from edgespec.config import EdgeSettings
from edgespec.errors import UsageError
from edgespec.progress import progress
from edgespec.telemetry import AnswerStats, speed

SKETCH = "sketch"
LONGEST_TRIP = 5000.0
"""Milliseconds; beyond it a device thinks its cloud silent."""


@dataclass(frozen=True)
class PlanSettings:
    profiles: tuple[Path, ...] = ()
    """Empty: the built-in ones."""
    recording: str = ""
    """`builtin`, `self` or a file; empty: what each profile says."""
    rtts_ms: tuple[float, ...] = ()
    """Empty: what each profile says."""
    prompts: int = 12
    """Recorded prompts to answer, at most."""
    plot: Path | None = None

    def check(self) -> None:
        """Raises `UsageError` for what would fail only once all has been simulated."""
        for rtt in self.rtts_ms:
            if not 0 <= rtt <= LONGEST_TRIP:
                raise UsageError(f"an RTT of {rtt:g} ms; it must be from 0 to {LONGEST_TRIP:g}")
        check_plot_file(self.plot)


def run(settings: PlanSettings, *, as_json: bool) -> None:
    """Simulates, prints and plots. Raises `UsageError` for a profile that is none."""
    settings.check()
    figures = plan(chosen_profiles(settings.profiles, settings.recording), settings)
    console = Console(width=max(Console().width, 100))
    for each in figures:
        console.print(plan_table(each))
        console.print(f"{plan_notes(each)}\n", style="dim", highlight=False, markup=False)
    console.print(SKETCH_NOTE, style="dim")
    if settings.plot:
        from bench.plan.plots import plot_plan

        plot_plan(settings.plot, figures)
    if as_json:
        print(json.dumps({"profiles": figures}))


def plan(
    profiles: Sequence[tuple[Profile, Recording]], settings: PlanSettings
) -> list[dict[str, Any]]:
    """What each method is worth at each round-trip time, for each profile."""
    cells = sum(
        len(settings.rtts_ms or profile.rtt_ms) * len(methods_for(profile))
        for profile, _ in profiles
    )
    with progress("simulations", cells, unit="simulations") as advance:
        figures = []
        for profile, recording in profiles:
            rtts = settings.rtts_ms or profile.rtt_ms
            chosen = excerpt(recording, settings.prompts)
            table: dict[str, dict[str, float]] = {}
            for rtt in rtts:
                times, row = profile.times(rtt), table.setdefault(f"{rtt:g}", {})
                for name, method in methods_for(profile).items():
                    row[name] = speed(answers(chosen, times, method, profile.draft_length))
                    advance(1, profile.name)
                row[SKETCH] = sketch(
                    chosen.agreement, profile.target_ms, profile.token_ms, profile.draft_ms, rtt
                )
            figures.append(_figures(profile, chosen, rtts, table))
    return figures


def methods_for(profile: Profile) -> dict[str, Method]:
    """The baselines that there are on this hardware, and edgespec."""
    missing = {"exits": not profile.exits, "cloud-draft": not profile.cloud_draft_ms}
    return {name: method for name, method in METHODS.items() if not missing.get(name)}


def answers(
    recording: Recording, times: Times, method: Method, draft_length: int
) -> list[AnswerStats]:
    settings = EdgeSettings(mode=method.mode, tactics=method.tactics, draft_length=draft_length)
    drafts = method.mode in ("auto", "edge")
    return simulate(recording, times, settings, drafts=drafts, useless=method.useless)


def _figures(
    profile: Profile,
    recording: Recording,
    rtts_ms: Sequence[float],
    table: dict[str, dict[str, float]],
) -> dict[str, Any]:
    return {
        "name": profile.name,
        "source": profile.source,
        "recording": recording.pair,
        "agreement": round(recording.agreement, 4),
        "prompts": len(recording.answers),
        "rtts_ms": list(rtts_ms),
        "methods": [*methods_for(profile), SKETCH],
        "tokens_per_s": {
            rtt: {name: round(value, 3) for name, value in row.items()}
            for rtt, row in table.items()
        },
        "ratio_to_cloud": {rtt: _ratios(row, profile) for rtt, row in table.items()},
    }


def _ratios(row: dict[str, float], profile: Profile) -> dict[str, float]:
    clouds = dict.fromkeys(row, row[CLOUD]) | {SKETCH: 1e3 / profile.target_ms}
    return {name: round(value / clouds[name], 4) for name, value in row.items() if clouds[name]}
