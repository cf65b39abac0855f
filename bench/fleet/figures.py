"""What one cell of a fleet's measurement says: from answers, and from the cloud's trace. Pure."""

from __future__ import annotations

import bisect
import math
from collections import Counter
from collections.abc import Sequence
from itertools import pairwise
from typing import Any, NamedTuple

from bench.fleet.devices import FleetDevice, Written
from bench.fleet.search import FIRST_TOKEN, SHARE
from bench.lab.percentile import percentile
from edgespec.trace import Span

STALL = 1.0
"""Seconds of silence at the end of a window that count as time which an answer took."""
BUSY = 0.8
"""Of its core, which the generator may use before its figures are doubtful."""
STOLEN = 0.1
"""Share of the time for which the cloud may be at work without its core before they are."""
LATE = 0.003
"""Seconds by which one in twenty of its sleeps may end too late before they are."""


class Window(NamedTuple):
    """`time.monotonic()`, in seconds."""

    opens: float
    closes: float

    @property
    def seconds(self) -> float:
        return self.closes - self.opens


class Load(NamedTuple):
    """What the processes cost while a window was open."""

    generator: float
    """Processor time, of a core."""
    cloud: float
    """The same."""
    memory_mb: float
    """Of the cloud, when it closed."""


def rate(answers: Sequence[Written], window: Window) -> float:
    """Tokens a second after the first of each answer, over what the window shows of all of them;
    0 where it shows nothing. Tokens come several at once, so an answer that was begun before
    counts from the last token before the window on."""
    tokens, spent = 0, 0.0
    for answer in answers:
        times = answer.times[: bisect.bisect_right(answer.times, window.closes)]
        shown = bisect.bisect_left(times, window.opens)
        if shown == len(times):
            continue
        base = max(0, shown - 1)
        silent = not answer.stats.finish and window.closes - times[-1] > STALL
        tokens += len(times) - 1 - base
        spent += (window.closes if silent else times[-1]) - times[base]
    return tokens / spent if spent > 0 else 0.0


def _within(answer: Written, window: Window) -> list[float]:
    return [moment for moment in answer.times if window.opens <= moment <= window.closes]


def met(device: FleetDevice, window: Window) -> bool:
    """Whether it got its rate, and its answers began in time."""
    firsts = _first_tokens(device, window)
    waited = sum(firsts) / len(firsts) if firsts else 0.0
    return rate(device.written, window) >= device.promised and waited <= FIRST_TOKEN


def _first_tokens(device: FleetDevice, window: Window) -> list[float]:
    """Seconds until each answer began that was asked for in the window; so far, if it has not."""
    return [
        (answer.times[0] if answer.times else window.closes) - answer.asked
        for answer in device.written
        if window.opens <= answer.asked <= window.closes
    ]


def served(devices: Sequence[FleetDevice], window: Window) -> dict[str, Any]:
    """Figures of these devices: rates, first tokens, gaps, steps and bytes a token."""
    good = [device for device in devices if met(device, window)]
    tokens = {device.number: _tokens(device, window) for device in devices}
    shown = [a for device in devices for a in device.written if _within(a, window)]
    stats = [answer.stats for answer in shown]
    firsts = [seconds for device in devices for seconds in _first_tokens(device, window)]
    gaps = [b - a for answer in shown for a, b in pairwise(_within(answer, window))]
    kinds = Counter(device.kind.name for device in devices)
    good_kinds = Counter(device.kind.name for device in good)
    written = max(sum(each.tokens for each in stats), 1)
    return {
        "devices": len(devices),
        "met": len(good),
        "share_met": len(good) / max(len(devices), 1),
        "holds": len(good) >= math.ceil(SHARE * len(devices)),
        "met_by_kind": {name: good_kinds[name] / count for name, count in kinds.items()},
        "rates": [round(rate(device.written, window), 2) for device in devices],
        "tokens_per_s": sum(tokens.values()) / window.seconds,
        "goodput": sum(tokens[device.number] for device in good) / window.seconds,
        "answers": sum(bool(each.finish) for each in stats),
        "refused": sum(device.refused for device in devices),
        "first_token_ms": 1e3 * percentile(firsts, 0.5) if firsts else None,
        "first_token_p95_ms": 1e3 * percentile(firsts, 0.95) if firsts else None,
        "p50_ms": 1e3 * percentile(gaps, 0.5),
        "p99_ms": 1e3 * percentile(gaps, 0.99),
        "steps_per_token": sum(each.rounds for each in stats) / written,
        "accepted_per_token": sum(each.accepted for each in stats) / written,
        "bytes_up_per_token": sum(each.bytes_up for each in stats) / written,
        "bytes_down_per_token": sum(each.bytes_down for each in stats) / written,
    }


def _tokens(device: FleetDevice, window: Window) -> int:
    return sum(len(_within(answer, window)) for answer in device.written)


def machine_load(load: Load, devices: Sequence[FleetDevice], window: Window) -> dict[str, Any]:
    """What the processes cost, and how punctual the devices' sleeps were."""
    sleeps = [sleep for device in devices for sleep in device.late]
    late = [seconds for ended, seconds in sleeps if window.opens <= ended <= window.closes]
    p95 = percentile(late, 0.95)
    return {
        "memory_mb": load.memory_mb,
        "generator": load.generator,
        "cloud_cpu": load.cloud,
        "late_p50_ms": 1e3 * percentile(late, 0.5),
        "late_p95_ms": 1e3 * p95,
        "trusted": load.generator <= BUSY and p95 <= LATE,
    }


def batches(spans: Sequence[Span], starts: Sequence[float], window: Window) -> dict[str, Any]:
    """The cloud's steps in a window. `spans` are sorted by start, and `starts` are those; the
    sessions of one step have one each, with the same start."""
    first, last = (bisect.bisect_left(starts, moment) for moment in window)
    inside = spans[first:last]
    steps = {s.start: s for s in inside if s.what in ("verify", "decode", "prefill")}
    cloud_draft = sum({s.start: s.seconds for s in inside if s.what == "draft"}.values())
    rows = [step.rows for step in steps.values()]
    seconds = [step.seconds for step in steps.values()]
    return {
        "steps_per_s": len(steps) / window.seconds,
        "rows_p50": percentile(rows, 0.5),
        "rows_p95": percentile(rows, 0.95),
        "step_ms": 1e3 * percentile(seconds, 0.5),
        "drafting_share": cloud_draft / window.seconds,
        "cloud_busy": (sum(seconds) + cloud_draft) / window.seconds,
    }


def believed(cell: dict[str, Any]) -> dict[str, Any]:
    """A cell's figures, with the share of the time that others took from the cloud's core."""
    stolen = max(0.0, cell["cloud_busy"] - cell["cloud_cpu"])
    return cell | {"stolen": stolen, "trusted": cell["trusted"] and stolen <= STOLEN}
