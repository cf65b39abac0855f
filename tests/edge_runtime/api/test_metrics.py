"""The counters of tokens: each counts once, by what proposed it."""

import re
from types import SimpleNamespace

import pytest

from edge_runtime.api.metrics import Metrics
from edgespec.telemetry import AnswerStats


@pytest.mark.parametrize(
    ("stats", "wanted"),
    [
        (AnswerStats(tokens=9, confirmed=5, accepted=3), (3, 2, 4, 0)),
        (AnswerStats(tokens=9, confirmed=5, accepted=3, unverified=4), (3, 2, 0, 4)),
        # A stop text ended the answer in the middle of what a verdict confirmed.
        (AnswerStats(tokens=2, confirmed=5, accepted=5), (2, 0, 0, 0)),
        (AnswerStats(tokens=4, confirmed=5, accepted=1), (1, 3, 0, 0)),
    ],
)
def test_tokens_by_origin(stats, wanted):
    metrics = Metrics()
    with metrics.running([SimpleNamespace(stats=stats)]):
        pass
    lines = metrics.exposition()[1].decode()
    found = dict(re.findall(r'^edgespec_api_tokens_total{origin="(.*)"} (.*)$', lines, re.M))
    names = ("device", "cloud-draft", "target", "unverified")
    assert tuple(float(found[name]) for name in names) == wanted
