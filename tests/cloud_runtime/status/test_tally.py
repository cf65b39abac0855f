"""Counters, and what Prometheus is shown of them."""

import pytest
from prometheus_client.parser import text_string_to_metric_families

from cloud_runtime.status.metrics import exposition
from cloud_runtime.status.tally import Histogram, Record, Tally
from edgespec.fleet import Fleet
from edgespec.protocol import Verdict


def test_a_histogram_counts_what_is_up_to_its_bounds():
    histogram = Histogram((1.0, 2.0))
    for value, times in ((0.5, 1), (1.0, 1), (1.5, 3), (9.0, 1)):
        histogram.add(value, times)
    assert histogram.counts == [2, 3, 1]
    assert histogram.sum == 15.0


@pytest.fixture
def tally():
    """A prompt of 3, a decoded token, a draft of 4 of which 2 were right, and the end."""
    tally, record = Tally(), Record(opened=10.0)
    tally.verdict(record, Verdict(1, 0, 3, 0, 0, 0, [7]), 10.5)
    tally.verdict(record, Verdict(1, 0, 4, 0, 0, 0, [7]), 10.6)
    tally.verdict(record, Verdict(1, 1, 5, 4, 2, 1, [7, 7, 7], "length"), 10.9)
    tally.end(record, "length", 10.9)
    assert record == Record(10.0, 10.5, 10.9, 5, 1, 4, 2, 1)
    assert record.rate == pytest.approx(4 / 0.4)
    return tally


def test_verdicts_are_counted(tally):
    assert (tally.prompt_tokens, tally.tokens, tally.drafts) == (3, 5, 1)
    assert (tally.verified, tally.confirmed, tally.accepted) == (4, 2, 1)
    assert tally.confirmed_by_position == [1, 1]
    assert tally.finished == {"length": 1}
    assert sum(tally.between_tokens.counts) == 4, "a step's tokens share its time"
    assert tally.between_tokens.sum == pytest.approx(0.4)


def samples(fleet, tally):
    kind, body = exposition(fleet, tally)
    assert kind.startswith("text/plain")
    return {
        (sample.name, *(v for k, v in sample.labels.items() if k != "model_name")): sample.value
        for family in text_string_to_metric_families(body.decode())
        for sample in family.samples
    }


def test_prometheus_sees_vllms_names(tally):
    tally.dropped["flood"] = 7
    found = samples(Fleet(target="m", state="ready", memory_used=1, memory_limit=4), tally)
    expected = {
        ("spec_decode_num_drafts_total",): 1,
        ("spec_decode_num_draft_tokens_total",): 4,
        ("spec_decode_num_accepted_tokens_total",): 2,
        ("spec_decode_num_accepted_tokens_per_pos_total", "0"): 1,
        ("spec_decode_num_accepted_tokens_per_pos_total", "1"): 1,
        ("prompt_tokens_total",): 3,
        ("generation_tokens_total",): 5,
        ("request_success_total", "length"): 1,
        ("time_to_first_token_seconds_count",): 1,
        ("inter_token_latency_seconds_bucket", "+Inf"): 4,
        ("e2e_request_latency_seconds_sum",): pytest.approx(0.9),
        ("kv_cache_usage_perc",): 0.25,
        ("num_requests_running",): 0,
        ("num_requests_waiting",): 0,
        ("packets_dropped_total", "flood"): 7,
        ("sessions", "away"): 0,
        ("ready",): 1,
    }
    for (name, *labels), value in expected.items():
        assert found[(f"edgespec:{name}", *labels)] == value, name
    assert found[("process_resident_memory_bytes",)] > 0


def test_a_copy_stands_still(tally):
    before = tally.copy()
    tally.verdict(Record(opened=0.0), Verdict(1, 1, 5, 4, 2, 1, [7, 7, 7]), 1.0)
    assert (before.tokens, before.confirmed_by_position) == (5, [1, 1])
    assert before.first_token.counts != tally.first_token.counts
