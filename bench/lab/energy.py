"""Energy and heat of the machine that a bench runs on: figures, and sentences for people.

Sensors see the whole machine or a part of it, never a process, so device and cloud are counted
together where both run here.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from edgespec.energy_report import Energy, combined

UNMEASURED = "not measured"
Figures = Mapping[str, Any]
"""`Energy.figures`."""


def device_options(root: Path | None) -> list[str]:
    """Of `edgespec edge-run`, to measure by the sensors below `root`; None: not at all."""
    return ["--energy", "--sensors", str(root)] if root else []


def each_token(figures: Figures | None) -> str:
    """Joules a token, for a table; a bound where readings were missing."""
    value = figures["joules_per_token"] if figures else None
    if figures is None or value is None:
        return UNMEASURED
    return f"{value:.3g}" if figures["complete"] else f"at least {value:.3g}"


def note(measured: Mapping[str, Figures]) -> str:
    """What was measured, or why not; and heat, with the names of those that were slowed by it."""
    windows = {name: msgspec.convert(dict(each), Energy) for name, each in measured.items()}
    total = combined(list(windows.values()))
    energy, heat = total.lines()
    if total.joules is not None:
        energy = f"energy: {total.covers}, device and cloud together, idle power included"
        energy += f"; without {total.leaves_out}" if total.leaves_out else ""
        energy += "".join(f"; {sentence}" for sentence in total.why)
    slowed = [name for name, each in windows.items() if each.throttled]
    if slowed:
        heat += f" (during: {', '.join(slowed)})"
    return f"{energy}\n{heat}"
