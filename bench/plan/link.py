"""Whether the simulation says what `edgespec bench link` measured."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import msgspec
from msgspec import Meta
from rich.console import Console

from bench.lab.methods import KNOWN
from bench.lab.profiles import (
    BUILTIN,
    Positive,
    Profile,
    Time,
    Trip,
    builtin_profiles,
    named_recording,
    read_profile,
)
from bench.lab.recording import Recording, excerpt
from bench.plan.run import answers
from bench.plan.tables import Compared, compared_table
from edgespec.errors import EdgespecError, UsageError
from edgespec.progress import progress
from edgespec.telemetry import speed

BUILTIN_TARGET = "SmolLM2-135M-Instruct"


class Cell(msgspec.Struct, frozen=True):
    rtt_ms: Trip
    method: str
    tokens_per_s: Annotated[float, Meta(gt=0)]
    draft_ms: Time = 0.0
    """Of a draft step with this method, which is longer where both sides compute at once; 0: not
    measured."""


class MeasuredTimes(msgspec.Struct, frozen=True):
    """Milliseconds; as in a profile."""

    target_ms: Positive
    token_ms: Time
    draft_ms: Positive
    cloud_draft_ms: Time = 0.0
    hint_ms: Time = 0.0
    batch: Annotated[tuple[Annotated[float, Meta(gt=0)], ...], Meta(min_length=1)] = (1.0,)


class Measured(msgspec.Struct, frozen=True):
    """What of `bench link`'s JSON counts here."""

    pair: str
    cells: Annotated[list[Cell], Meta(min_length=1)]
    times: MeasuredTimes | None = None
    draft_length: Annotated[int, Meta(ge=1, le=32)] = 4
    prompts: Annotated[int, Meta(ge=1)] = 12


@dataclass(frozen=True)
class LinkComparison:
    link: Path
    tolerance: float = 0.15
    profile: Path | None = None
    """None: the built-in one of the measured pair."""
    recording: str = ""
    """`builtin`, `self` or a file; empty: that of the profile."""
    rtts_ms: tuple[float, ...] = ()
    """Empty: all that were measured."""
    prompts: int = 0
    """Recorded prompts to answer; 0: as many as were measured."""


def run(settings: LinkComparison, *, as_json: bool) -> None:
    """Prints both. Raises `EdgespecError` where any differ by more than the tolerance."""
    measured = read_link(settings.link)
    profile, recording = _pair(measured, settings)
    cells = compare(measured, profile, recording, settings)
    if not cells:
        raise UsageError(f"{settings.link} has nothing at the RTTs of --rtt")
    Console().print(compared_table(measured.pair, cells, settings.tolerance))
    off = [cell for cell in cells if abs(cell.error) > settings.tolerance]
    if as_json:
        print(json.dumps(_figures(measured, cells, settings.tolerance)))
    if off:
        worst = max(off, key=lambda cell: abs(cell.error))
        raise EdgespecError(
            f"{len(off)} of {len(cells)} simulated speeds differ from the measured ones by more "
            f"than {settings.tolerance:.0%}; the worst is {worst.method} at {worst.rtt_ms:g} ms, "
            f"by {worst.error:+.0%}"
        )


def read_link(path: Path) -> Measured:
    """The last line of what `edgespec bench link --json` printed."""
    try:
        lines = path.read_bytes().rstrip().splitlines()
        return msgspec.json.decode(lines[-1] if lines else b"", type=Measured)
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror}") from error
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise UsageError(
            f"{path} does not end in the line that 'edgespec bench link --json' prints: {error}"
        ) from error


def compare(
    measured: Measured, profile: Profile, recording: Recording, settings: LinkComparison
) -> list[Compared]:
    """Each measured cell, and the simulation of it. Raises `UsageError` for unknown methods."""
    said = excerpt(recording, settings.prompts or measured.prompts)
    chosen = [c for c in measured.cells if not settings.rtts_ms or c.rtt_ms in settings.rtts_ms]
    compared = []
    with progress("simulations", len(chosen), unit="simulations") as advance:
        for cell in chosen:
            if cell.method not in KNOWN:
                raise UsageError(f"{settings.link} has a method {cell.method!r}; there is none")
            times = profile.times(cell.rtt_ms)
            times = replace(times, draft_ms=cell.draft_ms or times.draft_ms)
            stats = answers(said, times, KNOWN[cell.method], measured.draft_length)
            compared.append(Compared(cell.rtt_ms, cell.method, cell.tokens_per_s, speed(stats)))
            advance(1, f"{cell.rtt_ms:g} ms, {cell.method}")
    return compared


def _pair(measured: Measured, settings: LinkComparison) -> tuple[Profile, Recording]:
    if settings.profile:
        profile, recording = read_profile(settings.profile)
    elif BUILTIN_TARGET not in measured.pair:
        raise UsageError(f"{measured.pair} is not the built-in pair; pass its PROFILE.json too")
    else:
        wanted = BUILTIN[measured.pair.endswith(" self")]
        profile, recording = next(p for p in builtin_profiles() if p[0].recording == wanted)
    if measured.times:
        times = msgspec.structs.asdict(measured.times)
        profile = msgspec.structs.replace(profile, **times)
    return profile, named_recording(settings.recording) if settings.recording else recording


def _figures(measured: Measured, cells: list[Compared], tolerance: float) -> dict[str, Any]:
    return {
        "pair": measured.pair,
        "tolerance": tolerance,
        "worst_error": round(max(abs(cell.error) for cell in cells), 4),
        "cells": [cell._asdict() | {"error": round(cell.error, 4)} for cell in cells],
    }
