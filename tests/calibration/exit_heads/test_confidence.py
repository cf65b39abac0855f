import numpy as np
import pytest

from calibration.exit_heads.confidence import Evidence, calibrate, halves, platt
from edgespec.confidence import calibration_error, sigmoid


def drawn(slope, offset, n=40_000, seed=0):
    random = np.random.default_rng(seed)
    odds = random.normal(1.0, 3.0, n).astype(np.float32)
    return odds, random.random(n) < sigmoid(slope * odds + offset)


def evidence(odds, right, samples=8):
    tokens = np.arange(len(odds))
    number = np.sort(np.arange(len(odds)) % samples)
    return Evidence(odds, tokens, np.where(right, tokens, -1), number)


@pytest.mark.parametrize(("slope", "offset"), [(1.0, 0.0), (0.4, -1.5), (-0.3, 0.5)])
def test_the_fit_finds_the_sigmoid_that_made_the_evidence(slope, offset):
    assert platt(*drawn(slope, offset)) == pytest.approx((slope, offset), abs=0.06)


@pytest.mark.parametrize(
    "right",
    [np.ones(50, bool), np.zeros(50, bool), np.arange(50) >= 25],
    ids=["all", "none", "cut"],
)
def test_evidence_that_is_clear_cut_has_a_finite_fit_that_follows_it(right):
    odds = np.linspace(-60, 60, 50, dtype=np.float32)
    slope, offset = platt(odds, right)
    assert np.isfinite([slope, offset]).all()
    assert np.abs(sigmoid(slope * odds + offset) - right).mean() < 0.15


def test_evidence_that_is_all_alike_has_a_finite_fit():
    slope, offset = platt(np.full(100, 2.5, np.float32), np.arange(100) < 80)
    assert sigmoid(np.float32(slope * 2.5 + offset)) == pytest.approx(0.8, abs=0.02)
    assert platt(np.zeros(0, np.float32), np.zeros(0, bool)) == (1.0, 0.0)


def test_confidences_hold_after_the_fit_and_did_not_before():
    odds, right = drawn(0.4, -1.0)
    figures, bins = calibrate(evidence(odds, right))
    assert calibration_error(sigmoid(odds), right) > 0.15
    assert figures.error < 0.02
    assert sum(b.tokens for b in bins) == figures.tokens == 20_000


def test_agreement_is_of_the_half_that_was_not_fitted():
    odds = np.zeros(400, np.float32)
    right = np.repeat(np.arange(4) % 2 == 1, 100)
    figures, _ = calibrate(evidence(odds, right, samples=4))
    assert figures.agreement == 1.0
    assert figures.tokens == 200
    assert figures.error > 0.9


def test_one_sample_alone_is_halved_by_positions():
    found = evidence(np.zeros(10, np.float32), np.ones(10, bool), samples=1)
    fit, judge = halves(found)
    assert fit.sum() == judge.sum() == 5


def test_answers_are_cut_where_samples_end():
    found = Evidence(
        np.zeros(5, np.float32), np.arange(5), np.arange(5) + 10, np.array([0, 0, 3, 4, 4])
    )
    assert [part.tolist() for part in found.answers("tokens")] == [[0, 1], [2], [3, 4]]
    assert found.answers("target")[1].tolist() == [12]
