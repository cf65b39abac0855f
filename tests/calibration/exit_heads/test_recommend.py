import numpy as np
import pytest

from calibration.exit_heads.recommend import (
    Costs,
    foreseen,
    gain_ms,
    head_share,
    outcomes,
    recommend,
)
from edgespec.architecture import Architecture
from engines.machine.profiles import precisions


def bools(text):
    return np.array([letter == "x" for letter in text], bool)


NOBODY = bools("..........")
COSTS = Costs(layers=30, layer_ms=1.0, head_ms=2.0, draft_ms=100.0)


@pytest.mark.parametrize(
    ("right", "known", "costs", "split", "gain"),
    [
        # (12 + 2) ms to come in half of the rounds, less the head's 2 ms.
        ({18: bools("xxxxx.....")}, NOBODY, COSTS, (18,), 5.0),
        # The device had guessed the same rounds by itself.
        ({18: bools("xxxxx.....")}, bools("xxxxx....."), COSTS, (), 0.0),
        # It needs 3 ms to draft, so no more than 3 can be hidden.
        ({18: bools("xxxxx.....")}, NOBODY, COSTS._replace(draft_ms=3.0), (), 0.0),
        ({18: bools("xxxxx.....")}, NOBODY, COSTS._replace(draft_ms=6.0), (18,), 1.0),
        # A head that costs more than its hints hide.
        ({18: bools("x.........")}, NOBODY, COSTS, (), 0.0),
        # Twice the rounds, a quarter of the time: the early one is worth more.
        ({10: bools("xxxx......"), 27: bools("xxxxxxxx..")}, NOBODY, COSTS, (10,), 6.8),
        # Other rounds each: both.
        ({10: bools("xxxx......"), 20: bools("....xxxxx.")}, NOBODY, COSTS, (10, 20), 10.8),
        # The later one names the same and less time is left.
        ({10: bools("xxxxxx...."), 20: bools("xxxxxx....")}, NOBODY, COSTS, (10,), 11.2),
    ],
)
def test_the_split_is_the_one_that_hides_most(right, known, costs, split, gain):
    found = recommend(right, known, costs)
    assert found.split == split
    assert found.gain_ms == pytest.approx(gain)
    assert set(found.alone_ms) == set(right)


def test_a_later_exit_is_paid_for_what_the_earlier_one_missed():
    right = {10: bools("xx........"), 20: bools("xxxx......")}
    assert gain_ms((20,), right, NOBODY, COSTS) == pytest.approx(0.4 * 12 - 2)
    assert gain_ms((10, 20), right, NOBODY, COSTS) == pytest.approx(0.2 * 22 + 0.2 * 12 - 4)


def test_no_rounds_recommend_nothing():
    assert recommend({5: bools("")}, bools(""), COSTS).split == ()


def test_an_outcome_is_the_accepted_length_and_the_token_after():
    target = np.array([1, 2, 3, 4, 5, 6])
    draft = np.array([1, 2, 9, 4, 5, 6])
    accepted, token = outcomes(draft, target, 2)
    assert accepted.tolist() == [2, 1, 0, 2]
    assert token.tolist() == [3, 3, 3, 6]


@pytest.mark.parametrize(
    ("guess", "expected"),
    [
        ([1, 2, 3, 4, 5, 6], [True, True, True, True]),
        # Wrong at the last position only: rounds that end before it are foreseen.
        ([1, 2, 3, 4, 5, 7], [True, True, True, False]),
        # Sees no rejection where there is one.
        ([1, 2, 9, 4, 5, 6], [False, False, False, True]),
        # Sees the rejection but not the token.
        ([1, 2, 8, 4, 5, 6], [False, False, False, True]),
        # Wrong behind the rejection, where nobody looks: the third round ends before.
        ([1, 2, 3, 8, 5, 6], [True, True, True, False]),
    ],
)
def test_a_round_is_foreseen_up_to_its_first_mismatch(guess, expected):
    target, draft = np.array([1, 2, 3, 4, 5, 6]), np.array([1, 2, 9, 4, 5, 6])
    assert foreseen(np.array(guess), draft, target, 2).tolist() == expected


def test_without_a_draft_the_outcome_is_the_next_token():
    target = np.array([1, 2, 3])
    assert foreseen(np.array([1, 9, 3]), target, target, 0).tolist() == [True, False, True]


def test_an_answer_shorter_than_a_round_has_none():
    assert len(foreseen(np.array([1, 2]), np.array([1, 2]), np.array([1, 2]), 4)) == 0


def test_the_head_takes_its_share_of_the_weights_that_are_read():
    shapes = Architecture(
        family="llama", vocabulary=1000, hidden=10, layers=2, heads=2, kv_heads=1, head_dim=5,
        intermediate=20, norm_epsilon=1e-5, context=64, tied=True, qk_norm=False,
    )  # fmt: skip
    layer = 10 * (2 * 10 + 2 * 5 + 3 * 20)
    assert head_share(shapes, precisions("fp32")) == pytest.approx(10_000 / (10_000 + 2 * layer))
    mixed = head_share(shapes, precisions("int4", head="fp32"))
    assert mixed == pytest.approx(320_000 / (320_000 + 2 * layer * 4.5))
