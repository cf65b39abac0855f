"""What the measurements of `bench.crowd.run` say. Pure."""

from __future__ import annotations

import json
import statistics
from collections.abc import Sequence
from typing import Any

ALLOWED_LOSS = 0.1
"""Of their rate, that polite devices may lose to another one."""
ALLOWED_SHARE = 0.05
"""Of a step, that scheduler and wire may take."""
ALLOWED_ERROR = 0.1
"""Of a step's time, median, that its prediction may be off."""
TROUBLE = ("warning", "error")

Sample = dict[tuple[str, str], float]
"""`/metrics`: values by name, and by label where there is one besides the model's name."""


def metrics(text: str) -> Sample:
    """Prometheus's format as a cloud writes it. Histograms' buckets are left out."""
    values: Sample = {}
    for line in text.splitlines():
        if line.startswith("edgespec:") and "le=" not in line:
            head, _, value = line.rpartition(" ")
            name, _, labels = head.removeprefix("edgespec:").partition("{")
            pairs = (pair.partition("=") for pair in labels.rstrip("}").split('",'))
            others = [value.strip('"') for key, _, value in pairs if key != "model_name"]
            values[name, others[0] if others else ""] = float(value)
    return values


def overhead(before: Sample, after: Sample) -> dict[str, Any]:
    """What the cloud's loop did between two samples: milliseconds a step, and what all but the
    steps is of them."""

    def grown(name: str, label: str = "") -> float:
        return after.get((name, label), 0.0) - before.get((name, label), 0.0)

    def spent(activity: str) -> float:
        return grown("loop_seconds_total", activity)

    steps = max(grown("step_seconds_count"), 1)
    others = {name: spent(name) for name in ("receive", "decide", "answer")}
    run = spent("run")
    return {
        "steps": grown("step_seconds_count"),
        "rows": grown("step_rows_sum") / steps,
        "run_ms": 1e3 * run / steps,
        **{f"{name}_ms": 1e3 * seconds / steps for name, seconds in others.items()},
        **{f"{name}_share": seconds / run if run else 0.0 for name, seconds in others.items()},
        "share": sum(others.values()) / run if run else 0.0,
        "waited": spent("wait"),
        "tokens": grown("generation_tokens_total"),
    }


def mean_rate(cell: dict[str, Any], devices: int) -> float:
    """Tokens a second that each of the first devices got, on average."""
    return statistics.fmean(cell["rates"][:devices])


def compared(
    before: dict[str, Any], cell: dict[str, Any], after: dict[str, Any], devices: int
) -> dict[str, Any]:
    """What the polite devices had beside somebody, and without him just before and after."""
    alone = statistics.fmean([mean_rate(before, devices), mean_rate(after, devices)])
    beside = mean_rate(cell, devices)
    return {
        "rate_alone": alone,
        "rate_beside": beside,
        "ratio": beside / alone if alone else 0.0,
        "p99_alone_ms": max(before["p99_ms"], after["p99_ms"]),
        "p99_beside_ms": cell["p99_ms"],
        "refused": cell["refused"],
        "generator": cell["generator"],
        "cloud_cpu_alone": min(before["cloud_cpu"], after["cloud_cpu"]),
        "cloud_cpu_beside": cell["cloud_cpu"],
        "trusted": all(each["trusted"] for each in (before, cell, after)),
    }


def said_of(lines: Sequence[str], device: str) -> list[dict[str, Any]]:
    """What a cloud's log, in JSON, says about the trouble with a device."""
    said = []
    for line in lines:
        try:
            entry = json.loads(line)
        except ValueError:
            continue
        if entry.get("level") in TROUBLE and entry.get("device") == device:
            said.append(entry)
    return said


def worst(rows: Sequence[dict[str, Any]]) -> float | None:
    """The smallest ratio that an offender left the polite devices; None: there was none."""
    return min((row["ratio"] for row in rows), default=None)
