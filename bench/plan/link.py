"""`edgespec bench plan --link`: simulated speeds compared with those that `bench link` measured."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

import msgspec
from msgspec import Meta
from rich.console import Console

from bench.lab.builtin import SMALL
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
from bench.lab.report import print_json
from bench.plan.run import answers
from bench.plan.tables import ComparedSpeed, compared_table
from edgespec.errors import EdgespecError, UsageError
from edgespec.progress import progress
from edgespec.telemetry import speed

BUILTIN_TARGET = "SmolLM2-135M-Instruct"


class MeasuredSpeed(msgspec.Struct, frozen=True):
    """Speed of one method at one round-trip time."""

    rtt_ms: Trip
    method: str
    tokens_per_s: Annotated[float, Meta(gt=0)]
    draft_ms: Time = 0.0
    """Draft step with this method, which takes longer while both sides compute; 0: not measured."""


class MeasuredTimes(msgspec.Struct, frozen=True):
    """Step times as in a profile."""

    target_ms: Positive
    token_ms: Time
    draft_ms: Positive
    cloud_draft_ms: Time = 0.0
    hint_ms: Time = 0.0
    batch: Annotated[tuple[Annotated[float, Meta(gt=0)], ...], Meta(min_length=1)] = (1.0,)


class MeasuredLink(msgspec.Struct, frozen=True):
    """The part of `bench link`'s JSON that is compared."""

    pair: str
    cells: Annotated[list[MeasuredSpeed], Meta(min_length=1)]
    times: MeasuredTimes | None = None
    draft_length: Annotated[int, Meta(ge=1, le=32)] = 4
    prompts: Annotated[int, Meta(ge=1)] = 12


@dataclass(frozen=True)
class LinkComparison:
    link: Path
    tolerance: float = 0.15
    """Largest relative error that is accepted."""
    profile: Path | None = None
    """None: the built-in profile of the measured pair."""
    recording: str = ""
    """`builtin`, `self` or a file; empty: the recording of the profile."""
    rtts_ms: tuple[float, ...] = ()
    """Empty: all measured round-trip times."""
    prompts: int = 0
    """Recorded prompts to answer; 0: the number that was measured."""


class ComparedCell(msgspec.Struct, frozen=True):
    rtt_ms: float
    method: str
    measured: float
    simulated: float
    error: float


class LinkComparisonFigures(msgspec.Struct, frozen=True):
    """Result of a comparison; errors are relative to the measured speeds."""

    pair: str
    tolerance: float
    worst_error: float
    cells: list[ComparedCell]


def run(settings: LinkComparison, *, as_json: bool) -> None:
    """Prints both speeds. Raises `EdgespecError` if any error is larger than the tolerance."""
    measured = read_link(settings.link)
    profile, recording = _pair(measured, settings)
    speeds = compare(measured, profile, recording, settings)
    if not speeds:
        raise UsageError(f"{settings.link} has nothing at the RTTs of --rtt")
    Console().print(compared_table(measured.pair, speeds, settings.tolerance))
    if as_json:
        print_json(_figures(measured.pair, speeds, settings.tolerance))
    wrong = [speed for speed in speeds if abs(speed.error) > settings.tolerance]
    if wrong:
        worst = max(wrong, key=lambda speed: abs(speed.error))
        raise EdgespecError(
            f"{len(wrong)} of {len(speeds)} simulated speeds differ from the measured ones by more "
            f"than {settings.tolerance:.0%}; the worst is {worst.method} at {worst.rtt_ms:g} ms, "
            f"by {worst.error:+.0%}"
        )


def read_link(path: Path) -> MeasuredLink:
    """Reads the last line of the output of `edgespec bench link --json`.

    Raises `UsageError` if the file cannot be read or does not end in such a line.
    """
    try:
        lines = path.read_bytes().rstrip().splitlines()
        return msgspec.json.decode(lines[-1] if lines else b"", type=MeasuredLink)
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror}") from error
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise UsageError(
            f"{path} does not end in the line that 'edgespec bench link --json' prints: {error}"
        ) from error


def compare(
    measured: MeasuredLink, profile: Profile, recording: Recording, settings: LinkComparison
) -> list[ComparedSpeed]:
    """Simulates each measured speed. Raises `UsageError` for unknown methods."""
    replayed = excerpt(recording, settings.prompts or measured.prompts)
    chosen = [c for c in measured.cells if not settings.rtts_ms or c.rtt_ms in settings.rtts_ms]
    compared = []
    with progress("simulations", len(chosen), unit="simulations") as advance:
        for cell in chosen:
            if cell.method not in KNOWN:
                raise UsageError(f"{settings.link} has a method {cell.method!r}; there is none")
            times = profile.times(cell.rtt_ms)
            times = replace(times, draft_ms=cell.draft_ms or times.draft_ms)
            stats = answers(replayed, times, KNOWN[cell.method], measured.draft_length)
            compared.append(
                ComparedSpeed(cell.rtt_ms, cell.method, cell.tokens_per_s, speed(stats))
            )
            advance(1, f"{cell.rtt_ms:g} ms, {cell.method}")
    return compared


def _pair(measured: MeasuredLink, settings: LinkComparison) -> tuple[Profile, Recording]:
    if settings.profile:
        profile, recording = read_profile(settings.profile)
    elif BUILTIN_TARGET not in measured.pair:
        raise UsageError(f"{measured.pair} is not the built-in pair; pass its PROFILE.json too")
    else:
        name = BUILTIN[measured.pair.endswith(SMALL)]
        profile, recording = next(p for p in builtin_profiles() if p[0].recording == name)
    if measured.times:
        times = msgspec.structs.asdict(measured.times)
        profile = msgspec.structs.replace(profile, **times)
    return profile, named_recording(settings.recording) if settings.recording else recording


def _figures(pair: str, speeds: list[ComparedSpeed], tolerance: float) -> LinkComparisonFigures:
    return LinkComparisonFigures(
        pair,
        tolerance,
        round(max(abs(speed.error) for speed in speeds), 4),
        [ComparedCell(*speed, error=round(speed.error, 4)) for speed in speeds],
    )
