"""Results of `bench plan` for each profile."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, TypeVar

import msgspec

from bench.lab.methods import CLOUD
from bench.lab.profiles import Profile
from bench.lab.recording import Recording

AnyPlan = TypeVar("AnyPlan", bound="PlannedProfile")


class PlannedProfile(msgspec.Struct, frozen=True, kw_only=True):
    """Origin of the figures of one profile."""

    name: str
    source: str
    recording: str
    """Name of the recorded pair."""
    agreement: float
    prompts: int
    rtts_ms: list[float]

    @property
    def notes(self) -> str:
        recorded = f"{self.recording}, {self.prompts} answers: agreement {self.agreement:.2f}"
        return f"{self.source}\n{recorded}"


def planned(
    kind: type[AnyPlan],
    profile: Profile,
    recording: Recording,
    rtts_ms: Sequence[float],
    **figures: Any,
) -> AnyPlan:
    """Result of that kind, with the origin of its figures."""
    return kind(
        name=profile.name,
        source=profile.source,
        recording=recording.pair,
        agreement=round(recording.agreement, 4),
        prompts=len(recording.answers),
        rtts_ms=list(rtts_ms),
        **figures,
    )


class SpeedRow(NamedTuple):
    """All methods at one round-trip time."""

    rtt_ms: float
    tokens_per_s: dict[str, float]
    """Speed by method."""
    ratio_to_cloud: dict[str, float]
    """Speed relative to the cloud alone, by method."""


class ProfilePlan(PlannedProfile, frozen=True, kw_only=True):
    """Speeds by method and round-trip time."""

    methods: list[str]
    tokens_per_s: dict[str, dict[str, float]]
    """Speed by round-trip time and method."""
    ratio_to_cloud: dict[str, dict[str, float]]
    """Speed relative to the cloud alone, by round-trip time and method."""

    @property
    def rows(self) -> list[SpeedRow]:
        return [
            SpeedRow(rtt, self.tokens_per_s[f"{rtt:g}"], self.ratio_to_cloud[f"{rtt:g}"])
            for rtt in self.rtts_ms
        ]


def ratios_to_cloud(
    tokens_per_s: dict[str, float], sketch: str, target_ms: float
) -> dict[str, float]:
    """Speeds relative to the cloud alone; the `sketch` has no overheads, so it is relative to the
    target's step alone."""
    base = dict.fromkeys(tokens_per_s, tokens_per_s[CLOUD]) | {sketch: 1e3 / target_ms}
    return {
        name: round(speed / base[name], 4) for name, speed in tokens_per_s.items() if base[name]
    }


class FleetFigures(msgspec.Struct, frozen=True):
    """Result of one simulated fleet."""

    devices: int
    served: float
    """Share of the devices that are served."""
    tokens_per_s: float
    """Mean speed of a device."""
    p5_tokens_per_s: float
    """Speed that 95 % of the devices reach."""
    p95_first_token_ms: float
    busy: float
    """Share of the time in which the cloud runs target steps."""
    drafting: float
    """Share of the time in which the cloud runs cloud draft steps."""
    handling: float
    """Share of the time in which the cloud handles messages."""
    rows: float
    """Mean rows of a target step."""


class MethodFleets(msgspec.Struct, frozen=True, kw_only=True):
    """Fleets of one method at one target rate."""

    capacity: int | msgspec.UnsetType = msgspec.UNSET
    """Devices of the largest fleet that is served; unset if fleet sizes were given."""
    more: bool | msgspec.UnsetType = msgspec.UNSET
    """True if the largest fleet that was tried is served."""
    fleets: list[FleetFigures]


class ProfileFleets(PlannedProfile, frozen=True, kw_only=True):
    """Fleets by target rate and method."""

    rates: dict[str, dict[str, MethodFleets]]
