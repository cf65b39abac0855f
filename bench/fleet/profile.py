"""Profiles of fleets: which devices there are, their target rates and how they ask, as JSON.

{"name": "boards", "source": "estimated", "target_rate": 15, "arrive_s": 3, "recording": "fleet",
 "kinds": [
  {"name": "board", "share": 2, "draft_ms": 25, "rtt_ms": 50, "jitter_ms": 2, "think_s": 0.5,
   "answer_tokens": [96, 128]}
 ]}
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from bench.lab.profiles import Positive, Time, Trip, Words, profile_of, read_json
from bench.lab.recording import Recording, builtin_recording, read_recording
from edgespec.errors import UsageError

Seconds = Annotated[float, Meta(ge=0, le=3600)]
Rate = Annotated[float, Meta(gt=0, le=10_000)]
Length = Annotated[int, Meta(ge=2, le=4096)]
FLEET = "fleet"
"""The recording that comes with edgespec: answers of the built-in pair of up to 128 tokens."""


class DeviceKind(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Devices of one kind."""

    name: Words
    share: Annotated[float, Meta(gt=0, le=1e6)] = 1.0
    """Share of the fleet, relative to the other kinds' shares."""
    draft_ms: Positive
    """A draft step over one path."""
    batch: Annotated[tuple[Annotated[float, Meta(ge=1, le=100)], ...], Meta(min_length=1)] = (
        1.0, 1.45, 1.62,
    )  # fmt: skip
    """Times of a draft step over one, two, ... paths, relative to one."""
    read_ms: Time = 0.0
    """Time that the draft takes to read each prompt token, before its first step."""
    drafter: Literal["recorded", "ngram", "none", "useless"] = "recorded"
    """`useless`: the recorded draft's confidences, with tokens that are never right."""
    rtt_ms: Trip = 0.0
    jitter_ms: Trip = 0.0
    """Standard deviation of the one-way delay."""
    target_rate: Rate | None = None
    """Tokens a second; None: the fleet's."""
    think_s: Seconds = 0.5
    """Mean time between an answer and the next prompt."""
    think: Literal["exponential", "uniform", "fixed"] = "exponential"
    """Distribution of that time; `uniform` is from 0 to twice the mean."""
    answer_tokens: tuple[Length, Length] = (96, 128)
    """Smallest and largest length of an answer."""

    def __post_init__(self) -> None:
        if self.batch[0] != 1:
            raise ValueError("batch begins with 1, a step over one path")
        if self.answer_tokens[0] > self.answer_tokens[1]:
            raise ValueError("answer_tokens are from and to, in this order")


class FleetProfile(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    name: Words
    source: Words
    """Origin of the numbers: measured, published or estimated."""
    target_rate: Rate = 15.0
    """Tokens a second of every device, after the first token of an answer."""
    arrive_s: Seconds = 3.0
    """Time in which all devices come, at random."""
    recording: Words = FLEET
    """`fleet`, or a file next to the profile."""
    kinds: Annotated[tuple[DeviceKind, ...], Meta(min_length=1)]


def read_fleet(path: Path | None) -> tuple[FleetProfile, Path]:
    """The profile of a file, or the built-in one for None, and the folder that contains it.

    Raises `UsageError` naming file and key.
    """
    path = path or Path(str(resources.files("bench") / "data" / "fleet.json"))
    return profile_of(read_json(path), FleetProfile, str(path)), path.parent


def fleet_recording(name: str, folder: Path) -> Recording:
    """The built-in recording, or a file's. Raises `UsageError` for one without prompt ids."""
    recording = builtin_recording(FLEET) if name == FLEET else read_recording(folder / name)
    if not recording.prompt_ids:
        raise UsageError(
            f"{folder / name} was recorded without the prompts' token ids, which a fleet asks "
            "for; make it anew with 'edgespec bench plan --record'"
        )
    return recording


def chosen_fleet(profile: Path | None, recording: Path | None) -> tuple[FleetProfile, Recording]:
    """A file's profile or the built-in one, with the named recording or the profile's own."""
    fleet, folder = read_fleet(profile)
    if recording:
        return fleet, fleet_recording(str(recording), Path())
    return fleet, fleet_recording(fleet.recording, folder)


def mix(kinds: Sequence[DeviceKind], count: int) -> list[DeviceKind]:
    """The kind of each device; any first devices are mixed as the shares say."""
    total = sum(kind.share for kind in kinds)
    given = [0] * len(kinds)
    chosen = []
    for number in range(1, count + 1):
        owed = [kind.share / total * number - had for kind, had in zip(kinds, given, strict=True)]
        most = owed.index(max(owed))
        given[most] += 1
        chosen.append(kinds[most])
    return chosen


def answerable(recording: Recording, kind: DeviceKind, end_ids: Sequence[int]) -> list[int]:
    """Numbers of the prompts whose answers are long enough for `kind`.

    Raises `UsageError` if there are none, or if a recorded answer was cut off before that length.
    """
    least, most = kind.answer_tokens
    fitting = [n for n, answer in enumerate(recording.answers) if len(answer) >= least]
    answers = (recording.answers[number] for number in fitting)
    cut = [a for a in answers if len(a) < most and a[-1].token not in end_ids]
    if cut or not fitting:
        longest = max(len(answer) for answer in recording.answers)
        raise UsageError(
            f"devices {kind.name!r} ask for {least} to {most} tokens, and the recorded answers of "
            f"{recording.pair} have up to {longest}; record longer ones with 'edgespec bench plan "
            f"--record FILE --max-tokens {most}'"
        )
    return fitting
