"""Log-probabilities: by hand, and as the wire carries them."""

import numpy as np
import pytest

from edgespec.logprobs import TokenLogprobs, measure, read, record_bytes

PROBABILITIES = np.array([[0.5, 0.125, 0.25, 0.125], [0.1, 0.2, 0.3, 0.4]])
TOP_IDS = np.array([[0, 2, 1, 3], [3, 2, 1, 0]])


@pytest.mark.parametrize("kind", [np.float32, np.float64, np.float16])
def test_they_are_the_log_softmax_of_the_logits(kind):
    logits = (np.log(PROBABILITIES) + 7.0).astype(kind)
    first, second = read(measure(logits, TOP_IDS, [1, 3], 2), 2)
    near = {"abs": 1e-2 if kind is np.float16 else 1e-6}
    assert first.logprob == pytest.approx(np.log(0.125), **near)
    assert second.logprob == pytest.approx(np.log(0.4), **near)
    assert [token for token, _ in first.top] == [0, 2]
    assert [p for _, p in second.top] == pytest.approx(np.log([0.4, 0.3]), **near)


def test_large_logits_do_not_overflow():
    (only,) = read(measure(np.array([[1e4, 1e4 + 1, -np.inf]]), np.array([[1, 0, 2]]), [0], 0), 1)
    assert only == TokenLogprobs(pytest.approx(-np.log1p(np.e), abs=1e-6))


def test_only_the_tokens_asked_for_are_measured():
    logits = np.log(PROBABILITIES)
    assert len(measure(logits, TOP_IDS, [1], 3)) == record_bytes(3)
    assert measure(logits, TOP_IDS, [], 3) == b"" and read(b"", 0) == []


def test_a_small_vocabulary_is_filled_up():
    (only,) = read(measure(np.log(PROBABILITIES), TOP_IDS, [1], 6), 1)
    assert [p for _, p in only.top[4:]] == [-np.inf, -np.inf]


@pytest.mark.parametrize("records", [b"", b"1234567", b"1" * 12, b"1" * 24])
def test_records_that_fit_nothing_are_none(records):
    assert read(records, 2) == [None, None]
