"""How long a newcomer waits, as a table."""

import pytest

from cloud_runtime.admission import FIRST_GUESS, AnswerDurations, waiting_time


@pytest.mark.parametrize(
    ("ahead", "active", "seconds", "wait"),
    [(1, 1, 5.0, 5.0), (1, 10, 5.0, 0.5), (20, 10, 5.0, 10.0), (3, 0, 2.0, 6.0), (0, 4, 9.0, 0.0)],
)
def test_the_wait_is_what_those_ahead_need_at_the_rate_at_which_answers_end(
    ahead, active, seconds, wait
):
    assert waiting_time(ahead, active, seconds) == pytest.approx(wait)


def test_the_pace_is_a_guess_then_a_mean_then_what_was_lately():
    pace = AnswerDurations()
    assert pace.seconds == FIRST_GUESS
    for seconds in (2.0, 4.0):
        pace.ended(seconds)
    assert pace.seconds == pytest.approx(3.0)
    for _ in range(100):
        pace.ended(1.0)
    assert pace.seconds == pytest.approx(1.0, abs=0.01)
