"""Figures of fleets, from answers and from the cloud's trace. Pure."""

from __future__ import annotations

import bisect
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

from msgspec import UNSET, UnsetType

from bench.fleet.devices import FleetDevice, TimedAnswer
from bench.fleet.search import MAX_FIRST_TOKEN_S, SERVED_RATIO
from bench.lab.energy import MaybeEnergy
from bench.lab.percentile import percentile
from edgespec.telemetry import AnswerStats
from edgespec.trace import Span
from engines.machine.doctor import Machine

STALL_S = 1.0
"""Silence at the end of a window that counts as time which the answer took."""
MAX_GENERATOR_RATIO = 0.8
"""Share of its core that the load generator may use before its figures are unreliable."""
MAX_STOLEN_RATIO = 0.1
"""Share of the time that other processes may take from the cloud's core before figures are
unreliable."""
MAX_LATE_S = 0.003
"""Lateness of the 95th percentile of the generator's sleeps before its figures are unreliable."""


class Window(NamedTuple):
    """The time that is measured, by `time.monotonic()`, in seconds."""

    opens: float
    closes: float

    @property
    def seconds(self) -> float:
        return self.closes - self.opens


class ProcessLoad(NamedTuple):
    """Load of the processes while a window was open."""

    generator: float
    """Processor time of the load generator, as a share of a core."""
    cloud: float
    """Processor time of the cloud, as a share of a core."""
    memory_mb: float
    """Memory of the cloud when the window closed."""


@dataclass(frozen=True, kw_only=True)
class FleetService:
    """Service that the devices of a trial got. Steps and bytes are for each token of answers."""

    devices: int
    met: int
    """Devices that got their target rate and whose answers began in time."""
    share_met: float
    holds: bool
    """True if enough devices were served for the fleet to count as served."""
    met_by_kind: dict[str, float]
    """Share of each kind of device."""
    rates: list[float]
    """Tokens a second of each device."""
    tokens_per_s: float
    """Tokens a second of all devices together."""
    goodput: float
    """Tokens a second of the devices in `met`."""
    answers: int
    """Answers that ended."""
    refused: int
    """Answers that the cloud refused."""
    first_token_ms: float | None
    """Median; None: no answer was asked for in the window."""
    first_token_p95_ms: float | None
    p50_ms: float
    """Median time between tokens."""
    p99_ms: float
    steps_per_token: float
    accepted_per_token: float
    bytes_up_per_token: float
    bytes_down_per_token: float


@dataclass(frozen=True, kw_only=True)
class MachineLoad:
    """Load of the processes, and lateness of the devices' sleeps."""

    memory_mb: float
    generator: float
    cloud_cpu: float
    late_p50_ms: float
    late_p95_ms: float
    reliable: bool
    """True if the generator was punctual and the cloud had its core to itself."""


@dataclass(frozen=True, kw_only=True)
class CloudSteps:
    """The cloud's steps in a window. Shares are of the window's time."""

    steps_per_s: float
    rows_p50: float
    rows_p95: float
    step_ms: float
    """Median."""
    drafting_share: float
    """Share of draft steps in the cloud."""
    cloud_busy: float
    """Share of target and draft steps together."""


@dataclass(frozen=True, kw_only=True)
class Trial(FleetService, MachineLoad):
    """One fleet with one method."""

    method: str
    real: FleetService | UnsetType = UNSET
    """Service that the devices with a real draft got."""
    energy: MaybeEnergy = UNSET


@dataclass(frozen=True, kw_only=True)
class FleetCell(Trial, CloudSteps):
    """A trial together with the cloud's steps."""

    stolen: float
    """Share of the time that other processes took from the cloud's core."""


@dataclass(frozen=True, kw_only=True)
class FleetFigures:
    """Everything that `edgespec bench fleet` measured."""

    capacity: dict[str, int]
    """Devices of the largest fleet that was served, by method."""
    fails: dict[str, int | None]
    """Devices of the smallest fleet that was not served, by method."""
    confirmed: dict[str, bool]
    """True if these two fleets are neighbours, by method."""
    capacity_ratio_to_cloud: float | None
    capacity_ratio_to_cloud_draft: float | None
    capacity_ratio_to_lockstep: float | None
    cells: list[FleetCell]
    pair: str
    profile: str
    target_rate: float
    """Tokens a second for each device."""
    seconds: float
    methods: list[str]
    mode: str
    machine: Machine


def rate(answers: Sequence[TimedAnswer], window: Window) -> float:
    """Tokens a second after the first token of each answer; 0 where the window shows none.

    Tokens arrive several at once. An answer that began before the window therefore counts from its
    last token before the window.
    """
    tokens, spent_s = 0, 0.0
    for answer in answers:
        times = answer.times[: bisect.bisect_right(answer.times, window.closes)]
        shown = bisect.bisect_left(times, window.opens)
        if shown == len(times):
            continue
        base = max(0, shown - 1)
        silent = not answer.stats.finish and window.closes - times[-1] > STALL_S
        tokens += len(times) - 1 - base
        spent_s += (window.closes if silent else times[-1]) - times[base]
    return tokens / spent_s if spent_s > 0 else 0.0


def met(device: FleetDevice, window: Window) -> bool:
    """True if the device got its target rate and its answers began in time."""
    firsts = _first_tokens_s(device, window)
    mean_s = sum(firsts) / len(firsts) if firsts else 0.0
    return rate(device.answers, window) >= device.target_rate and mean_s <= MAX_FIRST_TOKEN_S


def served(devices: Sequence[FleetDevice], window: Window) -> FleetService:
    """Service that `devices` got while the window was open."""
    good = [device for device in devices if met(device, window)]
    tokens = {device.number: _tokens(device, window) for device in devices}
    shown = [a for device in devices for a in device.answers if _within(a, window)]
    stats = [answer.stats for answer in shown]
    firsts = [seconds for device in devices for seconds in _first_tokens_s(device, window)]
    gaps = [b - a for answer in shown for a, b in pairwise(_within(answer, window))]
    written = max(sum(each.tokens for each in stats), 1)
    return FleetService(
        devices=len(devices),
        met=len(good),
        share_met=len(good) / max(len(devices), 1),
        holds=len(good) >= math.ceil(SERVED_RATIO * len(devices)),
        met_by_kind=_share_by_kind(devices, good),
        rates=[round(rate(device.answers, window), 2) for device in devices],
        tokens_per_s=sum(tokens.values()) / window.seconds,
        goodput=sum(tokens[device.number] for device in good) / window.seconds,
        answers=sum(bool(each.finish) for each in stats),
        refused=sum(device.refused for device in devices),
        first_token_ms=1e3 * percentile(firsts, 0.5) if firsts else None,
        first_token_p95_ms=1e3 * percentile(firsts, 0.95) if firsts else None,
        p50_ms=1e3 * percentile(gaps, 0.5),
        p99_ms=1e3 * percentile(gaps, 0.99),
        steps_per_token=_total(stats, "rounds") / written,
        accepted_per_token=_total(stats, "accepted") / written,
        bytes_up_per_token=_total(stats, "bytes_up") / written,
        bytes_down_per_token=_total(stats, "bytes_down") / written,
    )


def machine_load(load: ProcessLoad, devices: Sequence[FleetDevice], window: Window) -> MachineLoad:
    sleeps = [sleep for device in devices for sleep in device.late]
    late = [seconds for ended, seconds in sleeps if window.opens <= ended <= window.closes]
    p95_s = percentile(late, 0.95)
    return MachineLoad(
        memory_mb=load.memory_mb,
        generator=load.generator,
        cloud_cpu=load.cloud,
        late_p50_ms=1e3 * percentile(late, 0.5),
        late_p95_ms=1e3 * p95_s,
        reliable=load.generator <= MAX_GENERATOR_RATIO and p95_s <= MAX_LATE_S,
    )


def cloud_steps(spans: Sequence[Span], starts: Sequence[float], window: Window) -> CloudSteps:
    """The cloud's steps in a window.

    `spans` are sorted by start, and `starts` are their starts. The sessions of one step have one
    span each, with the same start.
    """
    first, last = (bisect.bisect_left(starts, moment) for moment in window)
    inside = spans[first:last]
    steps = {s.start: s for s in inside if s.what in ("verify", "decode", "prefill")}
    drafting_s = sum({s.start: s.seconds for s in inside if s.what == "draft"}.values())
    rows = [step.rows for step in steps.values()]
    seconds = [step.seconds for step in steps.values()]
    return CloudSteps(
        steps_per_s=len(steps) / window.seconds,
        rows_p50=percentile(rows, 0.5),
        rows_p95=percentile(rows, 0.95),
        step_ms=1e3 * percentile(seconds, 0.5),
        drafting_share=drafting_s / window.seconds,
        cloud_busy=(sum(seconds) + drafting_s) / window.seconds,
    )


def fleet_cell(trial: Trial, steps: CloudSteps) -> FleetCell:
    """The trial with its steps; unreliable if others took too much of the cloud's core."""
    stolen = max(0.0, steps.cloud_busy - trial.cloud_cpu)
    fields = vars(trial) | vars(steps)
    fields["reliable"] = trial.reliable and stolen <= MAX_STOLEN_RATIO
    return FleetCell(stolen=stolen, **fields)


def _within(answer: TimedAnswer, window: Window) -> list[float]:
    return [moment for moment in answer.times if window.opens <= moment <= window.closes]


def _first_tokens_s(device: FleetDevice, window: Window) -> list[float]:
    """Seconds to the first token of each answer that was asked for in the window; to the window's
    end where there is no token yet."""
    return [
        (answer.times[0] if answer.times else window.closes) - answer.asked
        for answer in device.answers
        if window.opens <= answer.asked <= window.closes
    ]


def _tokens(device: FleetDevice, window: Window) -> int:
    return sum(len(_within(answer, window)) for answer in device.answers)


def _share_by_kind(devices: Sequence[FleetDevice], good: Sequence[FleetDevice]) -> dict[str, float]:
    counts = Counter(device.kind.name for device in devices)
    good_counts = Counter(device.kind.name for device in good)
    return {name: good_counts[name] / count for name, count in counts.items()}


def _total(stats: Sequence[AnswerStats], counter: str) -> int:
    return sum(getattr(each, counter) for each in stats)
