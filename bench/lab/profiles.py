"""Hardware profiles as JSON files: step times of a pair on a device and in a cloud.

{"name": "Orin Nano and A100", "source": "measured by ...",
 "target_ms": 21.5, "token_ms": 1.85, "draft_ms": 4.6, "cloud_draft_ms": 4.9, "hint_ms": 18,
 "row_ms": 1.27, "padded": 2, "cloud_draft_text_ms": 1.45,
 "batch": [1, 1.45, 1.62], "exits": [0.40, 0.66], "rtt_ms": [0, 25, 100],
 "draft_length": 4, "agreement": 0.65}
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, TypeVar

import msgspec
from msgspec import Meta

from bench.lab.methods import RTTS_MS
from bench.lab.recording import Recording, builtin_recording, read_recording, synthetic
from bench.simulation.times import Times
from edgespec.errors import UsageError

Time = Annotated[float, Meta(ge=0, le=10_000)]
Positive = Annotated[float, Meta(ge=0.01, le=10_000)]
Trip = Annotated[float, Meta(ge=0, le=5_000)]
Share = Annotated[float, Meta(ge=0, le=1)]
Words = Annotated[str, Meta(min_length=1)]
AnyProfile = TypeVar("AnyProfile", bound=msgspec.Struct)
BUILTIN = ("strong", "small")
"""Recordings that come with edgespec: the drafts of the built-in pair."""


class Profile(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Times in milliseconds."""

    name: Words
    source: Words
    """Origin of the numbers: measured, published or estimated."""
    target_ms: Positive
    """A step of one token."""
    token_ms: Time
    """Each further token of a step."""
    row_ms: Time = 0.0
    """Each further session of a step, in addition to its tokens."""
    padded: Annotated[int, Meta(ge=1, le=64)] = 1
    """Least number of tokens of a session in a step; shorter rows are padded."""
    draft_ms: Positive
    cloud_draft_ms: Time = 0.0
    """A draft step in the cloud; 0: the cloud has no draft."""
    cloud_draft_text_ms: Time = 0.0
    """Each further session of a draft step in the cloud."""
    cloud_draft_read_ms: Time = 0.0
    """Each further token that a draft step in the cloud reads."""
    hint_ms: Time = 0.0
    """Time that exit heads add to a step."""
    batch: Annotated[tuple[Annotated[float, Meta(ge=1, le=100)], ...], Meta(min_length=1)] = (
        1.0, 1.45, 1.62,
    )  # fmt: skip
    """Times of a draft step over one, two, ... paths, relative to one."""
    exits: tuple[Share, ...] = (0.40, 0.66)
    """Agreement of each exit head with the target; empty: there are none."""
    rtt_ms: Annotated[tuple[Trip, ...], Meta(min_length=1)] = RTTS_MS
    draft_length: Annotated[int, Meta(ge=1, le=32)] = 4
    """Tokens drafted in a round of lockstep and exits."""
    agreement: Share | None = None
    """Acceptance rate of a synthetic recording."""
    recording: Words | None = None
    """`strong`, `small`, or a file next to the profile."""

    def __post_init__(self) -> None:
        if (self.agreement is None) == (self.recording is None):
            raise ValueError("it needs one of agreement and recording")
        if self.batch[0] != 1:
            raise ValueError("batch begins with 1, a step over one path")

    def times(self, rtt_ms: float) -> Times:
        return Times(
            self.target_ms, self.token_ms, self.draft_ms, self.cloud_draft_ms, self.hint_ms, rtt_ms,
            self.batch, exits=self.exits, row_ms=self.row_ms, padded=self.padded,
            cloud_draft_text_ms=self.cloud_draft_text_ms,
            cloud_draft_read_ms=self.cloud_draft_read_ms,
        )  # fmt: skip


def read_profile(path: Path) -> tuple[Profile, Recording]:
    """A profile and its recording. Raises `UsageError` naming file and key."""
    profile = profile_of(read_json(path), Profile, str(path))
    return profile, recording_of(profile, path.parent)


def builtin_profiles() -> list[tuple[Profile, Recording]]:
    file = resources.files("bench") / "data" / "hardware.json"
    entries = json.loads(file.read_text("utf-8"))
    profiles = [profile_of(entry, Profile, str(file)) for entry in entries]
    return [(profile, recording_of(profile, Path())) for profile in profiles]


def chosen_profiles(paths: Sequence[Path], recording: str) -> list[tuple[Profile, Recording]]:
    """The profiles of the files, or the built-in ones for none, each with its recording.

    A named `recording` replaces the profiles' own.
    """
    profiles = [read_profile(path) for path in paths] or builtin_profiles()
    if recording:
        named = named_recording(recording)
        profiles = [(profile, named) for profile, _ in profiles]
    return profiles


def read_json(path: Path) -> Any:
    """The value in a JSON file. Raises `UsageError` naming the file."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{path} is not JSON: {error}") from error


def profile_of(entry: Any, kind: type[AnyProfile], place: str) -> AnyProfile:
    """A JSON value as a profile of type `kind`. Raises `UsageError` naming place and key."""
    try:
        return msgspec.convert(entry, kind)
    except msgspec.ValidationError as error:
        what, _, key = str(error).partition(" - at `$")
        key = key.strip("`.")
        what = what[0].lower() + what[1:]
        fault = f"{key}: {what}" if key else what
        keys = ", ".join(kind.__struct_fields__)
        raise UsageError(f"{place} is no profile: {fault} (keys: {keys})") from error


def recording_of(profile: Profile, folder: Path) -> Recording:
    if profile.recording is None:
        return synthetic(profile.agreement or 0.0)
    return named_recording(profile.recording, folder)


def named_recording(name: str, folder: Path = Path()) -> Recording:
    """A recording that comes with edgespec, or a file, relative to `folder` or absolute."""
    return builtin_recording(name) if name in BUILTIN else read_recording(folder / name)
