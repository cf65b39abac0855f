"""`edgespec bench crowd`: what a crowd costs a cloud, and what one bad device costs the others.

    offenders   15 polite devices alone, and beside one that behaves badly, in turns
    overhead    what scheduler and wire are of a step, with 64 of 256 sessions active; the memory
                of a session
    churn       20 000 short sessions, and what is left of them
    model       how far off the predicted times of steps are

Polite devices are those of `bench.fleet.run`: the real loop over a real socket, and every answer
must be the recorded one, token for token.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rich.console import Console

from bench.crowd.churn import churn
from bench.crowd.cloud import PARTS, Crowd, CrowdSettings
from bench.crowd.overhead import crowd_model, crowd_overhead
from bench.crowd.polite import offences
from bench.crowd.tables import crowd_tables
from bench.fleet.profile import chosen_fleet
from bench.lab.builtin import builtin_bundle
from edgespec.manifest import Bundle
from engines.machine.doctor import describe


def run(bundle: Path | None, settings: CrowdSettings, *, as_json: bool) -> None:
    """Measures and prints. Raises `EdgespecError` if an answer is not the recorded one."""
    settings.check()
    profile, recording = chosen_fleet(settings.profile, settings.recording)
    opened = Bundle.open(bundle) if bundle else builtin_bundle()
    crowd = Crowd(opened, profile, recording, settings)
    measures: dict[str, Callable[[], dict[str, Any]]] = {
        "offenders": lambda: offences(crowd),
        "overhead": lambda: crowd_overhead(crowd),
        "churn": lambda: churn(settings.sessions),
        "model": lambda: crowd_model(crowd),
    }
    figures: dict[str, Any] = {"pair": recording.pair, "profile": profile.name}
    for part in PARTS:
        if part in settings.parts:
            figures |= measures[part]()
    figures["machine"] = describe().as_dict()
    console = Console(width=max(Console().width, 110), highlight=False)
    for shown in crowd_tables(figures):
        console.print(shown)
    if as_json:
        print(json.dumps(figures), flush=True)
