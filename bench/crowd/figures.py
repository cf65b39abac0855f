"""Figures of `bench.crowd.run`. Pure."""

from __future__ import annotations

import json
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from bench.fleet.figures import Trial
from bench.lab.report import jsonable
from engines.machine.doctor import Machine

MAX_LOSS_RATIO = 0.1
"""Share of their rate that polite devices may lose to another device."""
MAX_OVERHEAD_RATIO = 0.05
"""Share of a step that scheduler and wire may take."""
MAX_ERROR_RATIO = 0.1
"""Median error of predicted step times that is allowed, as a share of a step."""
LOOP_ACTIVITIES = ("receive", "decide", "answer")
"""Activities of the cloud's loop besides steps."""
TROUBLE = ("warning", "error")

Sample = dict[tuple[str, str], float]
"""`/metrics`: values by name, and by the label other than the model's name where there is one."""
LogEntry = dict[str, Any]
"""A line of the cloud's log in JSON."""


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Service of polite devices next to one more device, and without it just before and after."""

    rate_alone: float
    """Tokens a second of a polite device, on average."""
    rate_with_offender: float
    ratio: float
    """The rate with the offender, relative to the rate alone."""
    p99_alone_ms: float
    """99th percentile of the time between tokens."""
    p99_with_offender_ms: float
    refused: int
    generator: float
    """Processor time of the load generator, as a share of a core."""
    cloud_cpu_alone: float
    cloud_cpu_with_offender: float
    reliable: bool


@dataclass(frozen=True, kw_only=True)
class Offence(Comparison):
    """One offender: what it cost the polite devices, and what it did."""

    name: str
    memory_before_mb: float
    """Memory of the cloud."""
    memory_with_offender_mb: float
    memory_after_mb: float
    log_entry: LogEntry | None
    """The first warning or error that names the offender."""
    lines: int
    """How many there were."""
    did: dict[str, float]
    """The offender's own counts."""


@dataclass(frozen=True, kw_only=True)
class OffendersPart:
    worst_polite_ratio: float | None
    greedy_ratio_to_one_more: float | None
    """Rate next to the greedy device, relative to the rate next to one more polite device."""
    polite: int
    offenders: list[Offence]


@dataclass(frozen=True, kw_only=True)
class LoopCost:
    """Work of the cloud's loop between two samples."""

    steps: float
    rows: float
    """Sessions of a step."""
    run_ms: float
    """Milliseconds of a step."""
    receive_ms: float
    """Milliseconds of each activity for each step."""
    decide_ms: float
    answer_ms: float
    receive_share: float
    """Each activity as a share of steps."""
    decide_share: float
    answer_share: float
    share: float
    """All three together."""
    waited: float
    """Seconds."""
    tokens: float


@dataclass(frozen=True, kw_only=True)
class SharedLoopCost(LoopCost):
    """The same with the sessions that were there."""

    connected: int
    active: int
    generator: float
    cloud_cpu: float
    reliable: bool
    length: int
    """Tokens of the sessions whose memory was measured."""
    idle_mb: float
    """Memory that the idle sessions took."""
    memory_mb: float


@dataclass(frozen=True, kw_only=True)
class OverheadPart:
    overhead_share: float
    session_kv_bytes: float
    session_record_bytes: float
    overhead: SharedLoopCost


@dataclass(frozen=True, kw_only=True)
class CloudState:
    """Objects that the cloud held after a number of short sessions."""

    sessions: int
    memory_mb: float
    objects: int
    open_sessions: int
    devices: int
    """Devices that it remembers."""


@dataclass(frozen=True, kw_only=True)
class Churn:
    seconds: float
    connections: int
    marks: list[CloudState]


@dataclass(frozen=True, kw_only=True)
class ChurnPart:
    growth_bytes: int
    growth_bytes_per_session: float
    churn: Churn


@dataclass(frozen=True, kw_only=True)
class Phase:
    """Predictions after a phase with one number of devices; errors are shares, medians."""

    devices: int
    steps: float
    """Steps so far."""
    error: float
    """Error of decoding and verifying steps."""
    prompt_error: float


@dataclass(frozen=True, kw_only=True)
class ModelPart:
    step_error: float
    prompt_step_error: float
    steps: float
    model: list[Phase]


@dataclass(kw_only=True)
class CrowdFigures:
    """Everything that `edgespec bench crowd` measured; None: a part was not asked for."""

    pair: str
    profile: str
    machine: Machine
    offenders: OffendersPart | None = None
    overhead: OverheadPart | None = None
    churn: ChurnPart | None = None
    model: ModelPart | None = None

    def as_json(self) -> dict[str, Any]:
        """The figures of all parts in one object."""
        figures: dict[str, Any] = {"pair": self.pair, "profile": self.profile}
        for part in (self.offenders, self.overhead, self.churn, self.model):
            figures |= jsonable(part) if part else {}
        return figures | {"machine": jsonable(self.machine)}


def metrics(text: str) -> Sample:
    """Parse Prometheus's format as a cloud writes it. Histograms' buckets are left out."""
    values: Sample = {}
    for line in text.splitlines():
        if line.startswith("edgespec:") and "le=" not in line:
            head, _, value = line.rpartition(" ")
            name, _, labels = head.removeprefix("edgespec:").partition("{")
            pairs = (pair.partition("=") for pair in labels.rstrip("}").split('",'))
            others = [value.strip('"') for key, _, value in pairs if key != "model_name"]
            values[name, others[0] if others else ""] = float(value)
    return values


def loop_cost(before: Sample, after: Sample) -> LoopCost:
    def grown(name: str, label: str = "") -> float:
        return after.get((name, label), 0.0) - before.get((name, label), 0.0)

    def spent_s(activity: str) -> float:
        return grown("loop_seconds_total", activity)

    steps = max(grown("step_seconds_count"), 1)
    run_s = spent_s("run")
    others_s = {name: spent_s(name) for name in LOOP_ACTIVITIES}
    times_ms = {f"{name}_ms": 1e3 * seconds / steps for name, seconds in others_s.items()}
    shares = {f"{name}_share": s / run_s if run_s else 0.0 for name, s in others_s.items()}
    return LoopCost(
        steps=grown("step_seconds_count"),
        rows=grown("step_rows_sum") / steps,
        run_ms=1e3 * run_s / steps,
        **times_ms,
        **shares,
        share=sum(shares.values()),
        waited=spent_s("wait"),
        tokens=grown("generation_tokens_total"),
    )


def mean_rate(trial: Trial, devices: int) -> float:
    """Tokens a second of each of the first `devices`, on average."""
    return statistics.fmean(trial.rates[:devices])


def compared(before: Trial, trial: Trial, after: Trial, devices: int) -> Comparison:
    """Compare the first `devices` of `trial` with themselves before and after."""
    alone = statistics.fmean([mean_rate(before, devices), mean_rate(after, devices)])
    with_offender = mean_rate(trial, devices)
    return Comparison(
        rate_alone=alone,
        rate_with_offender=with_offender,
        ratio=with_offender / alone if alone else 0.0,
        p99_alone_ms=max(before.p99_ms, after.p99_ms),
        p99_with_offender_ms=trial.p99_ms,
        refused=trial.refused,
        generator=trial.generator,
        cloud_cpu_alone=min(before.cloud_cpu, after.cloud_cpu),
        cloud_cpu_with_offender=trial.cloud_cpu,
        reliable=all(each.reliable for each in (before, trial, after)),
    )


def trouble_of(lines: Sequence[str], device: str) -> list[LogEntry]:
    """The warnings and errors about a device in a cloud's log in JSON."""
    entries = []
    for line in lines:
        try:
            entry = json.loads(line)
        except ValueError:
            continue
        if entry.get("level") in TROUBLE and entry.get("device") == device:
            entries.append(entry)
    return entries


def worst(rows: Sequence[Comparison]) -> float | None:
    """The smallest ratio of all offenders; None: there was none."""
    return min((row.ratio for row in rows), default=None)
