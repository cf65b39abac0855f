"""Energy and heat of the machine that a bench runs on, for tables and notes.

Sensors see the whole machine or a part of it, never one process. Device and cloud are therefore
counted together when both run here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TypeAlias

from msgspec import UnsetType

from bench.lab.tables import Column, Row
from edgespec.energy_report import Energy, combined

UNMEASURED = "not measured"
MaybeEnergy: TypeAlias = Energy | UnsetType
"""Energy, or UNSET where the bench ran without `--energy`; UNSET is left out of JSON."""


def device_options(root: Path | None) -> list[str]:
    """Options of `edgespec edge-run` to measure by the sensors below `root`; none for None."""
    return ["--energy", "--sensors", str(root)] if root else []


def energy_columns(
    rows: Sequence[Row], energy: Callable[[Row], MaybeEnergy | None]
) -> tuple[Column, ...]:
    """One column of joules a token if any row has an `energy`; otherwise none.

    A row whose energy is None has an empty cell.
    """
    if not any(energy(row) for row in rows):
        return ()

    def cell(row: Row) -> str:
        measured = energy(row)
        return "" if measured is None else each_token(measured)

    return (Column("J a\ntoken", cell),)


def each_token(energy: MaybeEnergy | None) -> str:
    """Joules for each token; a lower bound where readings are missing."""
    if not energy or energy.joules_per_token is None:
        return UNMEASURED
    value = f"{energy.joules_per_token:.3g}"
    return value if energy.complete else f"at least {value}"


def note(measured: Mapping[str, Energy]) -> str:
    """Two sentences on what was measured, or why not, and on heat.

    `measured` holds one window for each name; the names of throttled windows are listed.
    """
    total = combined(list(measured.values()))
    energy, heat = total.lines()
    if total.joules is not None:
        energy = f"energy: {total.covers}, device and cloud together, idle power included"
        energy += f"; without {total.leaves_out}" if total.leaves_out else ""
        energy += "".join(f"; {sentence}" for sentence in total.why)
    throttled = [name for name, each in measured.items() if each.throttled]
    if throttled:
        heat += f" (during: {', '.join(throttled)})"
    return f"{energy}\n{heat}"
