"""`edgespec bench crowd`: what a crowd costs a cloud, and what one offender costs the others.

    offenders   15 polite devices alone, and next to one that behaves badly, in turns
    overhead    scheduler and wire as a share of a step, with 64 of 256 sessions active; the memory
                of a session
    churn       20 000 short sessions, and the memory that they leave in use
    model       the error of predicted step times

Polite devices are those of `bench.fleet.run`: the real loop over a real socket. Every answer must
be the recorded one, token for token.
"""

from __future__ import annotations

from pathlib import Path

from rich.console import Console

from bench.crowd.churn import churn
from bench.crowd.cloud import Crowd, CrowdSettings
from bench.crowd.figures import CrowdFigures
from bench.crowd.model import crowd_model
from bench.crowd.overhead import crowd_overhead
from bench.crowd.polite import offences
from bench.crowd.tables import crowd_tables
from bench.fleet.profile import chosen_fleet
from bench.lab.builtin import builtin_bundle
from bench.lab.report import print_json
from edgespec.manifest import Bundle
from engines.machine.doctor import describe

LEAST_WIDTH_COLUMNS = 110


def run(bundle: Path | None, settings: CrowdSettings, *, as_json: bool) -> None:
    """Measure and print. Raises `EdgespecError` if an answer is not the recorded one."""
    settings.check()
    profile, recording = chosen_fleet(settings.profile, settings.recording)
    opened = Bundle.open(bundle) if bundle else builtin_bundle()
    crowd = Crowd(opened, profile, recording, settings)
    parts = settings.parts
    figures = CrowdFigures(
        pair=recording.pair,
        profile=profile.name,
        machine=describe(),
        offenders=offences(crowd) if "offenders" in parts else None,
        overhead=crowd_overhead(crowd) if "overhead" in parts else None,
        churn=churn(settings.sessions) if "churn" in parts else None,
        model=crowd_model(crowd) if "model" in parts else None,
    )
    console = Console(width=max(Console().width, LEAST_WIDTH_COLUMNS), highlight=False)
    for shown in crowd_tables(figures):
        console.print(shown)
    if as_json:
        print_json(figures.as_json())
