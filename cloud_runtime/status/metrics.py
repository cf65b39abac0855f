"""The reply to `/metrics`: a snapshot in Prometheus's format.

Where vLLM counts the same thing, the metric has vLLM's name with the prefix `edgespec:` and its
label `model_name`. A dashboard for vLLM thus only needs another prefix.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from prometheus_client import CollectorRegistry, ProcessCollector
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector

from cloud_runtime.status.tally import Histogram, Tally
from edgespec.fleet import STATES, Fleet

MODES = ("edge", "edge + cloud-draft", "cloud-draft", "cloud")


def exposition(fleet: Fleet, tally: Tally, accept: str = "") -> tuple[str, bytes]:
    """Return content type and body. `accept`: the request's Accept header."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Snapshot(fleet, tally))
    ProcessCollector(registry=registry)
    encode, kind = choose_encoder(accept)
    return kind, encode(registry)


@dataclass(eq=False)  # registries keep collectors by identity
class _Snapshot(Collector):
    fleet: Fleet
    tally: Tally

    def collect(self) -> Iterator[Metric]:
        yield from self._requests()
        yield from self._steps()
        yield from self._devices()
        yield from self._energy()

    def _requests(self) -> Iterator[Metric]:
        fleet, tally = self.fleet, self.tally
        states = Counter(session.state for session in fleet.sessions)
        waiting = states["waiting"]
        yield self._gauge(
            "num_requests_running",
            "Sessions that have a slot or had one.",
            len(fleet.sessions) - waiting,
        )
        yield self._gauge(
            "num_requests_waiting", "Sessions that wait for their first slot.", waiting
        )
        share = fleet.memory_used / fleet.memory_limit if fleet.memory_limit else 0.0
        yield self._gauge("kv_cache_usage_perc", "KV cache of open sessions, from 0 to 1.", share)
        yield self._counter(
            "num_preemptions", "Slots taken from sessions (evictions).", fleet.evictions
        )
        yield self._counter(
            "prefix_cache_queries", "Tokens of sessions that got a slot.", fleet.prefix_queries
        )
        yield self._counter(
            "prefix_cache_hits", "Tokens copied from a shared prefix.", fleet.prefix_hits
        )
        yield self._counter(
            "prompt_tokens", "Prompt tokens of sessions with a first verdict.", tally.prompt_tokens
        )
        yield self._counter("generation_tokens", "Tokens committed.", tally.tokens)
        yield self._counters(
            "request_success", "Sessions that ended.", "finished_reason", tally.finished
        )
        yield self._histogram(
            "time_to_first_token_seconds", "Time from opening a session to its first verdict.",
            tally.first_token,
        )  # fmt: skip
        yield self._histogram(
            "inter_token_latency_seconds",
            "Time between two tokens of a session; the tokens of a verdict share its time evenly.",
            tally.between_tokens,
        )
        yield self._histogram(
            "e2e_request_latency_seconds",
            "Time from opening a session to its end.",
            tally.session_seconds,
        )
        yield self._counter(
            "spec_decode_num_drafts", "Verdicts on at least one draft token.", tally.drafts
        )
        yield self._counter(
            "spec_decode_num_draft_tokens", "Draft tokens that were verified.", tally.verified
        )
        yield self._counter(
            "spec_decode_num_accepted_tokens",
            "Verified tokens that are the target's own.",
            tally.confirmed,
        )
        positions = {str(n): count for n, count in enumerate(tally.confirmed_by_position)}
        yield self._counters(
            "spec_decode_num_accepted_tokens_per_pos", "Accepted tokens by position in the draft.",
            "position", positions,
        )  # fmt: skip

    def _steps(self) -> Iterator[Metric]:
        tally = self.tally
        yield self._histogram("step_seconds", "Time of a step of the target.", tally.step_seconds)
        yield self._histogram("step_rows", "Sessions in a step of the target.", tally.step_rows)
        yield self._histogram("step_tokens", "Tokens in a step of the target.", tally.step_tokens)
        yield self._gauge(
            "step_error_ratio", "Median relative error of the predicted time of a step.",
            self.fleet.step_error,
        )  # fmt: skip
        yield self._gauge(
            "prompt_step_error_ratio", "Median relative error of the predicted time of a prefill.",
            self.fleet.prompt_step_error,
        )  # fmt: skip
        yield self._counter(
            "cloud_draft_steps", "Steps of the cloud draft.", tally.cloud_draft_steps
        )
        yield self._counter(
            "cloud_draft_seconds", "Time of the cloud draft's steps.", tally.cloud_draft_seconds
        )
        yield self._counters(
            "loop_seconds", "Time of the cloud's loop by activity.", "activity", tally.activities
        )
        yield self._counter(
            "device_accepted_tokens", "Accepted tokens that devices drafted.", tally.accepted
        )

    def _devices(self) -> Iterator[Metric]:
        fleet, tally = self.fleet, self.tally
        states = Counter[str](session.state for session in fleet.sessions)
        modes = Counter(session.mode for session in fleet.sessions)
        yield self._gauges("sessions", "Open sessions by state.", "state", states, STATES)
        yield self._gauges("session_modes", "Open sessions by mode.", "mode", modes, MODES)
        yield self._gauge("devices", "Connected devices.", len(fleet.devices))
        yield self._gauge("kv_cache_bytes", "KV cache of open sessions.", fleet.memory_used)
        yield self._gauge(
            "kv_cache_kept_bytes", "KV cache kept of ended sessions.", fleet.memory_kept
        )
        yield self._gauge("kv_cache_limit_bytes", "Most KV cache in all.", fleet.memory_limit)
        yield self._counter(
            "read_again_tokens", "Tokens computed again after evictions.", fleet.read_again
        )
        yield self._counters("packets_dropped", "Packets lost by reason.", "reason", tally.dropped)
        yield self._counters(
            "refused", "Refused devices and sessions by error code.", "code", tally.refused
        )
        yield self._gauge("uptime_seconds", "Time since the start.", fleet.uptime)
        yield self._gauge("ready", "1 if new sessions are accepted.", fleet.state == "ready")

    def _energy(self) -> Iterator[Metric]:
        """Yield the metrics that are measured; the others are absent, not 0."""
        energy = self.fleet.energy
        if energy is None:
            return
        if energy.joules is not None:
            text = "Energy of this machine by rail, idle power included."
            yield self._counters("energy_joules", text, "rail", energy.rails)
        if energy.celsius is not None:
            yield self._gauge(
                "temperature_celsius", "Temperature of the warmest sensor.", energy.celsius
            )
        if energy.throttled is not None:
            text = "1 if heat or low power has slowed this machine since the start."
            yield self._gauge("throttled", text, energy.throttled)

    def _gauge(self, name: str, text: str, value: float) -> Metric:
        metric = GaugeMetricFamily(f"edgespec:{name}", text, labels=["model_name"])
        metric.add_metric([self.fleet.target], value)
        return metric

    def _gauges(
        self, name: str, text: str, label: str, values: Mapping[str, int], names: Iterable[str]
    ) -> Metric:
        metric = GaugeMetricFamily(f"edgespec:{name}", text, labels=["model_name", label])
        for each in names:
            metric.add_metric([self.fleet.target, each], values.get(each, 0))
        return metric

    def _counter(self, name: str, text: str, value: float) -> Metric:
        metric = CounterMetricFamily(f"edgespec:{name}", text, labels=["model_name"])
        metric.add_metric([self.fleet.target], value)
        return metric

    def _counters(self, name: str, text: str, label: str, values: Mapping[str, float]) -> Metric:
        metric = CounterMetricFamily(f"edgespec:{name}", text, labels=["model_name", label])
        for each, value in sorted(values.items()):
            metric.add_metric([self.fleet.target, each], value)
        return metric

    def _histogram(self, name: str, text: str, histogram: Histogram) -> Metric:
        metric = HistogramMetricFamily(f"edgespec:{name}", text, labels=["model_name"])
        buckets, total = [], 0
        for bound, count in zip((*histogram.bounds, "+Inf"), histogram.counts, strict=True):
            total += count
            buckets.append((str(bound), float(total)))
        metric.add_metric([self.fleet.target], buckets, histogram.sum)
        return metric
