"""Counters of the API for Prometheus."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest

from edge_runtime.completion import AsyncCompletion
from edgespec.telemetry import AnswerStats


class Metrics:
    def __init__(self) -> None:
        registry = CollectorRegistry()
        self._registry = registry
        self._requests = Counter(
            "edgespec_api_requests", "Answered requests by status.", ["status"], registry=registry
        )
        self._seconds = Histogram(
            "edgespec_api_request_seconds",
            "Time of a request, waiting for a place included.",
            buckets=(0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120),
            registry=registry,
        )
        self._running = Gauge("edgespec_api_answers", "Answers being written.", registry=registry)
        self._tokens = Counter(
            "edgespec_api_tokens", "Tokens written, by what proposed them.", ["origin"],
            registry=registry,
        )  # fmt: skip

    @contextmanager
    def running(self, answers: Sequence[AsyncCompletion]) -> Iterator[None]:
        """Counts answers while they are written, and their tokens afterwards."""
        self._running.inc(len(answers))
        try:
            yield
        finally:
            self._running.dec(len(answers))
            for answer in answers:
                for origin, count in _origins(answer.stats).items():
                    self._tokens.labels(origin).inc(count)

    def finished(self, status: int, seconds: float) -> None:
        self._requests.labels(str(status)).inc()
        self._seconds.observe(seconds)

    def exposition(self) -> tuple[str, bytes]:
        """Content type and body of `/metrics`."""
        return CONTENT_TYPE_LATEST, generate_latest(self._registry)


def _origins(stats: AnswerStats) -> dict[str, int]:
    """Tokens of an answer by origin. A verdict may confirm more than the answer takes, where a stop
    text ends it."""
    verified = max(0, stats.tokens - stats.unverified)
    drafted = min(stats.confirmed, verified)
    device = min(stats.accepted, drafted)
    return {
        "device": device,
        "cloud-draft": drafted - device,
        "target": verified - drafted,
        "unverified": stats.unverified,
    }
