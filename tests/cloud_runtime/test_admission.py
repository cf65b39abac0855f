"""Expected wait of a new session, as a table."""

import pytest

from cloud_runtime.admission import AnswerDurations, waiting_time
from edgespec.policies import SchedulerPolicy


@pytest.mark.parametrize(
    ("ahead", "active", "seconds", "wait"),
    [(1, 1, 5.0, 5.0), (1, 10, 5.0, 0.5), (20, 10, 5.0, 10.0), (3, 0, 2.0, 6.0), (0, 4, 9.0, 0.0)],
)
def test_the_wait_is_what_those_ahead_need_at_the_rate_at_which_answers_end(
    ahead, active, seconds, wait
):
    assert waiting_time(ahead, active, seconds) == pytest.approx(wait)


def test_the_duration_is_a_guess_then_a_mean_then_that_of_recent_answers():
    durations = AnswerDurations()
    assert durations.mean_s == SchedulerPolicy().first_answer_s
    for seconds in (2.0, 4.0):
        durations.ended(seconds)
    assert durations.mean_s == pytest.approx(3.0)
    for _ in range(100):
        durations.ended(1.0)
    assert durations.mean_s == pytest.approx(1.0, abs=0.01)
