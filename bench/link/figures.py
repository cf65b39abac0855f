"""Figures of methods over links of different round-trip times."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import msgspec
from msgspec import UNSET

from bench.lab.energy import MaybeEnergy
from bench.lab.methods import CLOUD
from bench.lab.percentile import percentile
from bench.link.emulator import Accuracy
from bench.link.shape import LinkShape
from edgespec.energy_report import Energy, combined
from edgespec.telemetry import AnswerStats, speed
from engines.machine.doctor import Machine

HIT_KINDS = ("full", "branch", "hint")


@dataclass
class MethodRun:
    """Raw measurements of one method at one round-trip time."""

    answers: list[AnswerStats] = field(default_factory=list)
    gaps_s: list[float] = field(default_factory=list)
    """Seconds between tokens."""
    cpu_s: float = 0.0
    """Processor time of the device."""
    draft_steps_s: list[float] = field(default_factory=list)
    """Seconds of draft steps over one path. They are longer where both sides compute at once and
    share a memory."""
    energy: list[Energy] = field(default_factory=list)
    """Energy of this machine, device and cloud together, while each answer was written."""


class LinkCell(msgspec.Struct, frozen=True, kw_only=True):
    """One method at one round-trip time. Steps, tokens and bytes are for each token of answers."""

    rtt_ms: float
    method: str
    tokens_per_s: float
    ratio_to_cloud: float
    first_token_ms: float
    p50_ms: float
    """Median time between tokens."""
    p99_ms: float
    steps_per_token: float
    """Steps of the target."""
    verified_per_token: float
    accepted_per_token: float
    thrown_away_per_token: float
    """Drafted tokens that the target verified and rejected."""
    bytes_up_per_token: float
    bytes_down_per_token: float
    device_busy: float
    """Share of the time in which the device's process computed."""
    loop_share: float
    """Share of the time that the device neither drafted nor waited."""
    draft_ms: float
    """A draft step over one path; 0: the device drafted nothing."""
    hits: dict[str, float]
    """Share of the verdicts after which the device could go on with a draft it had, by kind."""
    energy: MaybeEnergy = UNSET


class StepTimes(msgspec.Struct, frozen=True, kw_only=True):
    """Step times in milliseconds, as the cloud measured its own and the device its own."""

    target_ms: float
    """A step of one token."""
    token_ms: float
    """Each further token of a step."""
    cloud_draft_ms: float
    """A draft step in the cloud."""
    hint_ms: float
    """Time that exit heads add to a step."""
    draft_ms: float
    """A draft step on the device."""
    batch: list[float]
    """Times of a draft step over one, two, ... paths, relative to one."""


class LinkFigures(msgspec.Struct, frozen=True, kw_only=True):
    """Everything that `edgespec bench link` measured."""

    rtts_ms: list[float]
    methods: list[str]
    cells: list[LinkCell]
    tokens_per_s: dict[str, dict[str, float]]
    """Speeds by round-trip time in milliseconds, and by method."""
    worst_ratio_to_cloud: float | None
    """The lowest ratio of edgespec to the cloud alone over all round-trip times."""
    worst_ratio_useless: float | None
    """The same with a draft that is never right; None: not measured."""
    pair: str
    machine: Machine
    link_accuracy: dict[str, Accuracy]
    """Time that the emulated link itself adds, by round-trip time in milliseconds."""
    times: StepTimes
    prompts: int
    draft_length: int
    temperature: float
    link: LinkShape


def cells_of(runs: Mapping[tuple[float, str], MethodRun]) -> list[LinkCell]:
    """One cell for each round-trip time and method of `runs`."""
    return [
        _cell(rtt, name, run, speed(runs[rtt, CLOUD].answers)) for (rtt, name), run in runs.items()
    ]


def speeds_of(cells: Sequence[LinkCell]) -> dict[str, dict[str, float]]:
    """Tokens a second by round-trip time and method."""
    speeds: dict[str, dict[str, float]] = {}
    for cell in cells:
        speeds.setdefault(f"{cell.rtt_ms:g}", {})[cell.method] = round(cell.tokens_per_s, 2)
    return speeds


def worst_ratio(speeds: Mapping[str, Mapping[str, float]], method: str) -> float | None:
    """The lowest ratio of `method` to the cloud alone; None if it was not measured."""
    ratios = [at[method] / at[CLOUD] for at in speeds.values() if method in at]
    return round(min(ratios), 4) if ratios else None


def _cell(rtt_ms: float, method: str, run: MethodRun, cloud_speed: float) -> LinkCell:
    answers = run.answers
    tokens = max(sum(stats.tokens for stats in answers), 1)
    seconds = sum(stats.seconds for stats in answers)
    verified = sum(stats.verified for stats in answers) / tokens
    rate = speed(answers)
    return LinkCell(
        rtt_ms=rtt_ms,
        method=method,
        tokens_per_s=rate,
        ratio_to_cloud=rate / cloud_speed,
        first_token_ms=1e3 * statistics.mean(stats.first_token_seconds for stats in answers),
        p50_ms=1e3 * percentile(run.gaps_s, 0.5),
        p99_ms=1e3 * percentile(run.gaps_s, 0.99),
        steps_per_token=sum(stats.rounds for stats in answers) / tokens,
        verified_per_token=verified,
        accepted_per_token=sum(stats.accepted for stats in answers) / tokens,
        thrown_away_per_token=verified - sum(stats.confirmed for stats in answers) / tokens,
        bytes_up_per_token=sum(stats.bytes_up for stats in answers) / tokens,
        bytes_down_per_token=sum(stats.bytes_down for stats in answers) / tokens,
        device_busy=run.cpu_s / seconds,
        loop_share=sum(stats.loop_seconds for stats in answers) / seconds,
        draft_ms=1e3 * statistics.mean(run.draft_steps_s) if run.draft_steps_s else 0.0,
        hits=_hit_shares(answers),
        energy=combined(run.energy) if run.energy else UNSET,
    )


def _hit_shares(answers: Sequence[AnswerStats]) -> dict[str, float]:
    """Empty where there was no verdict on a draft."""
    verdicts = sum(sum(stats.hits.values()) for stats in answers)
    if not verdicts:
        return {}
    return {kind: sum(s.hits.get(kind, 0) for s in answers) / verdicts for kind in HIT_KINDS}
