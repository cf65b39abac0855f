"""When draft tokens are expected, and what a session tells the scheduler."""

from dataclasses import replace

import pytest

from cloud_runtime.outlook import READING_WITHOUT_DEVICE_TOKENS, outlook
from cloud_runtime.paths import CandidatePaths
from cloud_runtime.session_drafts import DraftArrivals
from cloud_runtime.sessions import CloudSession, Connection, FirstVerdict
from edgespec.policies import SchedulerPolicy
from edgespec.protocol import Draft, Terms
from edgespec.sampling import Sampling
from edgespec.session import Session

POLICY = SchedulerPolicy()


def draft(round_, base, *tokens, parent=0, confidences=b""):
    return Draft(1, round_, parent, base, list(tokens), confidences)


class Device:
    """Packets of a device, and the paths that they make."""

    def __init__(self):
        self.arrivals = DraftArrivals()
        self.paths = CandidatePaths([0] * 100)

    def came(self, message, now):
        path = self.paths.add(message)
        self.arrivals.draft_arrived(message, path, now)
        return path


def test_the_reaction_is_from_a_verdict_to_the_round_that_answers_it():
    device = Device()
    arrivals = device.arrivals
    arrivals.verdict_sent(10, now=1.0)
    arrivals.verdict_sent(12, now=1.1)
    device.came(draft(1, 12, 5), now=1.140)
    assert arrivals.reaction_s == pytest.approx(0.040)
    arrivals.verdict_sent(13, now=2.0)
    device.came(draft(2, 13, 5), now=2.080)
    assert arrivals.reaction_s == pytest.approx(0.050), "a quarter of the way"
    # A branch answers no verdict, nor does a round from a place that none had made known.
    arrivals.verdict_sent(14, now=3.0)
    device.came(draft(3, 13, 6, parent=2), now=3.5)
    device.came(draft(4, 90, 5), now=3.6)
    device.came(draft(5, 99), now=3.6)
    assert arrivals.reaction_s == pytest.approx(0.050)


def test_the_interval_is_time_by_ids_of_one_path():
    device = Device()
    arrivals = device.arrivals
    device.came(draft(1, 10, 5), now=1.0)
    assert arrivals.interval_s == 0.0
    device.came(draft(2, 10, 5, parent=1), now=1.0)  # a branch, told with it
    assert arrivals.interval_s == 0.0
    device.came(draft(1, 11, 6, 7), now=1.020)
    assert arrivals.interval_s == pytest.approx(0.010)
    device.came(draft(1, 13, 8), now=1.038)
    assert arrivals.interval_s == pytest.approx(0.012)
    device.came(draft(1, 99, 9), now=1.5)  # of no use
    device.came(draft(1, 14), now=1.6)  # no ids
    assert arrivals.interval_s == pytest.approx(0.012)


def test_what_is_coming():
    device = Device()
    arrivals = device.arrivals
    assert arrivals.expected_s(None, 9, 0.0) == []
    arrivals.verdict_sent(10, now=1.0)
    path = device.came(draft(1, 10, 5), now=1.040)
    device.came(draft(1, 11, 6), now=1.050)
    # Of a path that is growing: 10 ms after what came last, and so on.
    coming = arrivals.expected_s(path, 11, now=1.056)
    assert coming == pytest.approx([0.004 + 0.010 * i for i in range(POLICY.lookahead_tokens)])
    # A little late is now; later than that is not coming.
    late = POLICY.arrival_intervals * 0.010
    assert arrivals.expected_s(path, 11, now=1.060 + 0.9 * late)[:2] == pytest.approx([0.0, 0.010])
    assert arrivals.expected_s(path, 11, now=1.060 + 1.1 * late) == []
    # Of a new round: the reaction after the last verdict.
    arrivals.verdict_sent(12, now=1.060)
    assert arrivals.expected_s(None, 12, now=1.070)[:2] == pytest.approx([0.030, 0.040])
    assert arrivals.expected_s(None, 12, now=1.130) == []
    # Where the path ends with the committed text, either: here the next id of it is long overdue.
    assert arrivals.expected_s(path, 12, now=1.095)[:2] == pytest.approx([0.005, 0.015])


GOES_ON = Terms()


def new_session(terms=GOES_ON, opened=True):
    state = Session([1, 2, 3], 3, 20, frozenset())
    made = CloudSession(1, state, Sampling(), terms, Connection(b"a", 0.0), 0.0)
    made.cache.give(0, 0)
    if opened:
        made.progress.first_verdict = FirstVerdict(0.0, 3)
    return made


def test_an_outlook_says_what_is_here_and_what_is_coming():
    one = new_session()
    one.drafts.arrivals.verdict_sent(3, now=1.0)
    for base, now in ((3, 1.040), (4, 1.050)):
        path = one.drafts.paths.add(message := draft(1, base, 20 + base, confidences=b"\xcc"))
        one.drafts.arrivals.draft_arrived(message, path, now)
    view = outlook(one, 1.056, 8)
    assert view.arrived == pytest.approx([0.8, 0.8])
    assert view.expected_s[0] == pytest.approx(0.004)
    assert view.expected_confidence == one.drafts.paths.estimate.acceptance > 0
    assert not view.cloud_draft, "its terms do not allow it"
    assert (view.pending_tokens, view.lockstep, view.weight) == (3, False, 1.0)
    one.cache.advance(2)
    assert outlook(one, 1.056, 8, 2.0) == replace(view, pending_tokens=1, weight=2.0)


@pytest.mark.parametrize(
    ("most", "here", "more"), [(0, 0, False), (1, 1, False), (2, 2, False), (3, 2, True)]
)
def test_no_more_is_expected_than_is_of_use(most, here, more):
    one = new_session(Terms(cloud_draft=True))
    one.drafts.arrivals.verdict_sent(3, now=1.0)
    for base, now in ((3, 1.040), (4, 1.050)):
        path = one.drafts.paths.add(message := draft(1, base, 20 + base))
        one.drafts.arrivals.draft_arrived(message, path, now)
    view = outlook(one, 1.056, most)
    assert (len(view.arrived), bool(view.expected_s), view.cloud_draft) == (here, more, more)


def test_in_lock_step_all_that_is_here_is_verified_and_nothing_is_waited_for():
    one = new_session(Terms(cloud_draft=True, decoding=False))
    one.drafts.arrivals.verdict_sent(3, now=1.0)
    for base, now in ((3, 1.040), (4, 1.050)):
        path = one.drafts.paths.add(message := draft(1, base, 20 + base))
        one.drafts.arrivals.draft_arrived(message, path, now)
    view = outlook(one, 1.056, 8)
    assert view.lockstep and len(view.arrived) == 2
    assert not view.expected_s and not view.cloud_draft


@pytest.mark.parametrize(
    ("rate", "began", "due"),
    [
        (0.0, None, 5.0),  # since it could be served
        (0.0, (2.0, 3), 5.0),
        (4.0, None, 5.0),  # the first token has no deadline
        (4.0, (2.0, 4), 2.25),
        (4.0, (2.0, 3), 2.5),
        (0.5, (2.0, 4), 4.0),
    ],
)
def test_when_the_next_token_is_due(rate, began, due):
    one = new_session(Terms(target_rate=rate))
    one.progress.ended_at = 5.0
    one.progress.first_verdict = FirstVerdict(*began) if began else None
    one.state.commit([9])
    assert one.due == pytest.approx(due)


@pytest.mark.parametrize(
    ("terms", "opened", "coming", "cloud_draft"),
    [
        (Terms(cloud_draft=True), True, True, True),
        (Terms(cloud_draft=True), False, False, False),
        (Terms(drafting=False, cloud_draft=True), True, False, True),
        (Terms(drafting=False), True, False, False),
    ],
)
def test_when_a_draft_is_expected(terms, opened, coming, cloud_draft):
    one = new_session(terms, opened)
    one.drafts.arrivals.verdict_sent(3, now=1.0)
    one.drafts.arrivals.draft_arrived(
        message := draft(1, 3, 5), one.drafts.paths.add(message), now=1.040
    )
    one.drafts.paths = CandidatePaths(one.state.tokens)
    one.drafts.arrivals.verdict_sent(4, now=2.0)
    view = outlook(one, 2.010, 8)
    assert bool(view.expected_s) == coming
    assert view.cloud_draft == cloud_draft


def test_reading_is_charged_once_and_in_full_only_where_the_device_drafts_too():
    for terms, most in (
        (Terms(cloud_draft=True), POLICY.reading_tokens),
        (Terms(drafting=False, cloud_draft=True), READING_WITHOUT_DEVICE_TOKENS),
    ):
        one = new_session(terms, opened=True)
        one.state.commit(list(range(5, 22)))
        assert (one.unread, outlook(one, 0.0, 8).unread_tokens) == (20, most)
        one.add_cloud_token(7, 0.9)
        one.add_cloud_token(8, 0.9)
        assert one.unread == outlook(one, 0.0, 8).unread_tokens == 1
        one.state.commit([7, 9])  # the second was wrong
        one.drafts.settle(0.0, in_time=True)
        assert one.unread == 1


@pytest.mark.parametrize(
    ("drafting", "in_time", "shared", "may"),
    [
        (True, 1.0, False, True),
        (True, 1.0, True, False),
        (True, 0.2, True, True),
        (False, 1.0, True, True),
    ],
)
def test_in_a_shared_step_a_device_in_time_is_not_drafted_for(drafting, in_time, shared, may):
    one = new_session(Terms(drafting=drafting, cloud_draft=True), opened=True)
    one.drafts.in_time_share = in_time
    assert one.may_cloud_draft(shared=shared) == may
    assert outlook(one, 0.0, 8, shared=shared).cloud_draft == may


def test_rejected_tokens_lower_the_probabilities():
    one = new_session()
    for number in range(1, 40):
        one.drafts.paths.add(draft(number, one.length, 99, confidences=b"\xe6"))
        one.state.commit([5] if number % 3 else [99])  # right one time in three
        one.drafts.settle(0.0, in_time=True)
        one.state.finish, one.state.max_tokens = "", 100
    one.drafts.paths.add(draft(50, one.length, 7, confidences=b"\xe6"))
    (confidence,) = outlook(one, 0.0, 8).arrived
    assert 0.2 < confidence < 0.5


@pytest.mark.parametrize(
    ("terms", "waiting", "opened", "ready"),
    [
        (Terms(), False, True, True),
        (Terms(drafting=False), False, True, True),
        (Terms(drafting=False, decoding=False), False, True, True),
        (Terms(decoding=False), False, True, False),
        (Terms(decoding=False), True, True, True),
        (Terms(decoding=False), False, False, True),
    ],
)
def test_when_the_target_may_go_on(terms, waiting, opened, ready):
    one = new_session(terms, opened)
    one.drafts.waiting = waiting
    assert one.ready == ready
    one.progress.running = True
    assert not one.ready


def test_the_cloud_draft_continues_the_devices_draft():
    one = new_session(Terms(cloud_draft=True))
    one.drafts.paths.add(draft(1, 3, 20, 21))
    one.add_cloud_token(22, 0.9)
    assert one.draft_prefix == [1, 2, 3, 20, 21, 22]
    one.drafts.paths.add(draft(1, 5, 22, 23))
    assert one.best_path().round == 1, "the device is further on it"
    one.add_cloud_token(24, 0.9)
    one.drafts.paths.add(draft(1, 7, 99))
    assert one.best_path().round == 1, "and disagrees now"
    one.state.commit([20, 21])
    one.drafts.settle(0.0, in_time=True)
    assert one.draft_prefix == [1, 2, 3, 20, 21, 22, 23, 99]
    one.state.commit([22, 23, 24])
    one.drafts.settle(0.0, in_time=True)
    assert one.draft_prefix == [1, 2, 3, 20, 21, 22, 23, 24], "nothing is left of either"


def test_the_cached_length_stays_within_the_committed_tokens():
    one = new_session()
    one.cache.advance(3)
    for length in (-1, 4):
        with pytest.raises(AssertionError):
            one.cache.advance(length)
    one.cache.take(evicted=True)
    assert (one.cache.slot, one.cache.length, one.cache.lost_tokens) == (None, 0, 3)
    one.cache.give(5, 2)
    assert (one.cache.slot, one.cache.length, one.cache.lost_tokens, one.pending) == (5, 2, 0, 1)
