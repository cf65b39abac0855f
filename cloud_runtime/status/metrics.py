"""`/metrics`: a snapshot in Prometheus's format.

Names are vLLM's with `edgespec:` for `vllm:` wherever both count the same thing, and carry its
label `model_name`, so that its dashboards need another prefix and no more.
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
    """Content type and body; `accept` is the header of the request."""
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
        yield from self._as_vllm()
        yield from self._of_steps()
        yield from self._of_devices()
        yield from self._of_energy()

    def _as_vllm(self) -> Iterator[Metric]:
        fleet, tally = self.fleet, self.tally
        states = Counter(session.state for session in fleet.sessions)
        waiting = states["waiting"]
        yield self._gauge(
            "num_requests_running", "Sessions that have begun.", len(fleet.sessions) - waiting
        )
        yield self._gauge("num_requests_waiting", "Sessions that wait to begin.", waiting)
        share = fleet.memory_used / fleet.memory_limit if fleet.memory_limit else 0.0
        yield self._gauge("kv_cache_usage_perc", "Memory of open sessions; 1: all.", share)
        yield self._counter(
            "num_preemptions", "Slots taken from sessions (evictions).", fleet.evictions
        )
        yield self._counter(
            "prefix_cache_queries", "Tokens that sessions began with.", fleet.prefix_queries
        )
        yield self._counter("prefix_cache_hits", "Of those, found in the cache.", fleet.prefix_hits)
        yield self._counter("prompt_tokens", "Prompt tokens read.", tally.prompt_tokens)
        yield self._counter("generation_tokens", "Tokens committed.", tally.tokens)
        yield self._counters(
            "request_success", "Sessions that ended.", "finished_reason", tally.finished
        )
        yield self._histogram(
            "time_to_first_token_seconds", "From the opening to the first verdict.",
            tally.first_token,
        )  # fmt: skip
        yield self._histogram(
            "inter_token_latency_seconds",
            "Between two tokens of a session; those of one verdict share its time evenly.",
            tally.between_tokens,
        )
        yield self._histogram(
            "e2e_request_latency_seconds", "From the opening to the end.", tally.whole
        )
        yield self._counter(
            "spec_decode_num_drafts", "Verdicts on at least one drafted id.", tally.drafts
        )
        yield self._counter(
            "spec_decode_num_draft_tokens", "Drafted ids that were verified.", tally.verified
        )
        yield self._counter(
            "spec_decode_num_accepted_tokens", "Of those, the target's own.", tally.confirmed
        )
        places = {str(place): count for place, count in enumerate(tally.confirmed_at)}
        yield self._counters(
            "spec_decode_num_accepted_tokens_per_pos", "The same by place in the draft.",
            "position", places,
        )  # fmt: skip

    def _of_steps(self) -> Iterator[Metric]:
        tally = self.tally
        yield self._histogram("step_seconds", "A step of the target.", tally.step_seconds)
        yield self._histogram("step_rows", "Sessions of a step.", tally.step_rows)
        yield self._histogram("step_tokens", "Tokens of a step.", tally.step_tokens)
        yield self._gauge(
            "step_error_ratio", "Median error of the predicted time of a step, relative to it.",
            self.fleet.step_error,
        )  # fmt: skip
        yield self._gauge(
            "prompt_step_error_ratio", "The same of steps over prompts.",
            self.fleet.prompt_step_error,
        )  # fmt: skip
        yield self._counter(
            "cloud_draft_steps", "Steps of the draft beside.", tally.cloud_draft_steps
        )
        yield self._counter(
            "cloud_draft_seconds", "Seconds that they took.", tally.cloud_draft_seconds
        )
        yield self._counters(
            "loop_seconds", "Seconds of the loop by what it did.", "activity", tally.activities
        )
        yield self._counter(
            "device_accepted_tokens", "Accepted ids that devices drafted.", tally.accepted
        )

    def _of_devices(self) -> Iterator[Metric]:
        fleet, tally = self.fleet, self.tally
        states = Counter[str](session.state for session in fleet.sessions)
        modes = Counter(session.mode for session in fleet.sessions)
        yield self._gauges("sessions", "Open sessions.", "state", states, STATES)
        yield self._gauges("session_modes", "Open sessions.", "mode", modes, MODES)
        yield self._gauge("devices", "Devices that are here.", len(fleet.devices))
        yield self._gauge("kv_cache_bytes", "KV cache of open sessions.", fleet.memory_used)
        yield self._gauge("kv_cache_kept_bytes", "KV cache of kept texts.", fleet.memory_kept)
        yield self._gauge("kv_cache_limit_bytes", "The most both may be.", fleet.memory_limit)
        yield self._counter("read_again_tokens", "Read again after evictions.", fleet.read_again)
        yield self._counters("packets_dropped", "Packets lost.", "reason", tally.dropped)
        yield self._counters("refused", "Devices and sessions refused.", "code", tally.refused)
        yield self._gauge("uptime_seconds", "Since the start.", fleet.uptime)
        yield self._gauge("ready", "Whether new sessions are taken.", fleet.state == "ready")

    def _of_energy(self) -> Iterator[Metric]:
        """What is not measured is absent, not 0."""
        energy = self.fleet.energy
        if energy is None:
            return
        if energy.joules is not None:
            text = "Energy of this machine's rails, idle power included."
            yield self._counters("energy_joules", text, "rail", energy.rails)
        if energy.celsius is not None:
            yield self._gauge("temperature_celsius", "The warmest sensor.", energy.celsius)
        if energy.throttled is not None:
            text = "Whether heat or a lack of power has slowed this machine since the start."
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
