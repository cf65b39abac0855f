"""Whether the device drafts: chosen from measured times, with hysteresis and a stated reason."""

import pytest

from edge_runtime.measurements import Measurements
from edge_runtime.modes import Modes
from edgespec.config import EdgeSettings, Tactics
from edgespec.policies import ModePolicy
from edgespec.protocol import VERSION, Terms, Verdict, Welcome

POLICY = ModePolicy()
TRIAL, PAUSE, LONGEST_PAUSE = (
    POLICY.trial_tokens, POLICY.pause_tokens, POLICY.longest_pause_tokens,
)  # fmt: skip
LOOK, HOPE = POLICY.first_look_tokens, POLICY.hoped_acceptance
ON, OFF = POLICY.start_overtaking_probability, POLICY.stop_overtaking_probability


def welcome(*, draft_ms=0.0, hint_ms=0.0, exits=(1, 2)):
    return Welcome(VERSION, "t", "k", 512, 32, list(exits), 30.0, 2.0, draft_ms, hint_ms)


def modes(*, drafts=True, cloud=None, acceptance=0.8, **settings):
    chosen = EdgeSettings(**settings)
    made = Modes(chosen, cloud or welcome(), drafts=drafts, acceptance=acceptance)
    link(made, 0.005)
    for _ in range(20):
        made.measurements.add_draft_step(0.010, 1)
    return made


def link(made, round_trip):
    for _ in range(8):
        made.measurements.add_trip(round_trip)


def hear(made, tokens, accepted, *, teach=True):
    """A verdict of so many tokens, from which agreement may be learnt; whether the mode has
    changed."""
    made.verdict(Verdict(1, 1, 0, accepted, accepted, accepted, [7] * tokens), tokens)
    if teach:
        made.measurements.estimate.learn(0.5, right=accepted > 0)
    return made.reconsider()


def until_it_changes(made, accepted, most=3 * LONGEST_PAUSE, *, teach=True):
    """Tokens, one by one, until the mode changes."""
    for tokens in range(1, most):
        if hear(made, 1, accepted, teach=teach):
            return tokens
    raise AssertionError(f"no change within {most} tokens")


def test_a_useful_draft_stays():
    made = modes()
    for _ in range(20 * TRIAL):
        assert not hear(made, 1, 1)
    # One of its tokens in five is enough.
    for number in range(20 * TRIAL):
        assert not hear(made, 1, int(number % 5 == 0))
    assert made.terms.drafting


def test_a_useless_draft_stops_after_a_trial_and_tries_again_after_a_pause_that_doubles():
    made = modes()
    assert until_it_changes(made, 0) == TRIAL
    assert not made.terms.drafting and made.name == "cloud"
    assert "overtakes the cloud with probability 0.0" in made.reason
    pauses = []
    for _ in range(3):
        pauses.append(until_it_changes(made, 0))
        assert made.terms.drafting and "another try" in made.reason
        assert until_it_changes(made, 0) == TRIAL
    assert pauses[0] >= PAUSE
    assert pauses == [pauses[0], 2 * pauses[0], 4 * pauses[0]]
    for _ in range(8):
        assert until_it_changes(made, 0) <= LONGEST_PAUSE
    # A try that goes well makes the next pause short again.
    while not made.terms.drafting:
        hear(made, 1, 0)
    for _ in range(TRIAL):
        assert not hear(made, 1, 1)
    until_it_changes(made, 0)
    assert until_it_changes(made, 0) == pauses[0]


def test_a_long_round_trip_stops_it_and_a_short_one_brings_it_back():
    made = modes()
    link(made, 0.5)  # 25 tokens of the cloud's own, at 20 ms gained each
    assert until_it_changes(made, 1, teach=False) == made.trial_tokens > TRIAL
    assert not made.terms.drafting
    assert "overtakes the cloud with probability 0.0" in made.reason
    assert "round trip 500.0 ms, target step 30.0 ms, draft step 10.0 ms" in made.reason
    for _ in range(3 * PAUSE):
        assert not hear(made, 1, 0, teach=False), "not even a good draft would overtake"
    link(made, 0.005)
    assert hear(made, 1, 0)
    assert made.terms.drafting and "another try" in made.reason


def test_a_draft_step_that_seemed_too_slow_is_measured_anew():
    made = modes()
    for _ in range(20):
        made.measurements.add_draft_step(0.04, 1)  # longer than the target's: it cannot overtake
    assert until_it_changes(made, 0, teach=False) == made.trial_tokens
    assert until_it_changes(made, 0, teach=False) == PAUSE
    assert made.terms.drafting and made.measurements.timings.draft == 0


def test_a_draft_that_is_right_and_always_late_stops_unless_it_is_likely_to_overtake():
    made = modes()
    link(made, 0.1)  # a lead of 5: 0.8 ** 6 = 0.26
    assert until_it_changes(made, 0, teach=False) == made.trial_tokens
    assert f"of the last {made.trial_tokens} tokens 0% were the device's" in made.reason
    made = modes()
    link(made, 0.08)  # a lead of 4: 0.8 ** 5 = 0.33
    for _ in range(5 * TRIAL):
        assert not hear(made, 1, 0, teach=False)


def test_what_is_slower_with_the_device_stops_and_is_compared_with_what_it_is_without():
    """As on a machine that both share: 33 tokens/s alone, 20 with the device drafting."""
    made = modes()

    def write(rate, most=10_000):
        for tokens in range(1, most):
            made.verdict(Verdict(1, 1, 0, 1, 1, 1, [7]), 1, 1 / rate)
            if made.reconsider():
                return tokens
        return most

    assert write(20.0) == made.trial_tokens
    assert "to measure the cloud" in made.reason, "33.3 is what the cloud says of itself"
    # The loaded cloud gives 15: so 20 was good, and the next try lasts.
    assert write(15.0) == LOOK
    assert write(20.0, most=20 * TRIAL) == 20 * TRIAL
    assert made.terms.drafting
    # A try that stays below what was measured ends in a long pause.
    write(12.0)
    assert "12.0 tokens/s with it, 15.0 without" in made.reason
    assert write(15.0) == PAUSE


def test_a_draft_that_was_measured_is_expected_to_be_as_good():
    for acceptance, looks in ((0.8, True), (0.97, False)):  # 0.97 ** (1 + 3) = 0.89
        made = modes(cloud=DRAFTING, acceptance=acceptance)
        link(made, 0.060)
        made.begin()
        assert made.terms.drafting != looks


def test_where_it_is_doubtful_the_device_first_looks_how_fast_the_cloud_is():
    for round_trip, looks in ((0.001, False), (0.060, True)):  # 0.8 ** (1 + 3) = 0.41
        made = modes(cloud=DRAFTING)
        link(made, round_trip)
        made.begin()
        assert made.terms.drafting != looks
    assert made.name == "cloud-draft"
    assert until_it_changes(made, 0, teach=False) == LOOK
    assert made.terms.drafting
    for mode, cloud in (("edge", DRAFTING), ("auto", welcome())):
        made = modes(mode=mode, cloud=cloud)
        link(made, 0.060)
        made.begin()
        assert made.terms.drafting, "nothing else would be faster"


def test_between_the_two_bounds_nothing_changes():
    """A draft that drafts goes on below the bound at which a resting one would try again."""
    lead = next(n / 10 for n in range(1000) if HOPE ** (1 + n / 10) < (ON + OFF) / 2)
    made = modes()
    for number in range(1000):
        made.measurements.estimate.learn(HOPE, right=number % 10 < 10 * HOPE)
    link(made, 0.020 * lead)
    made.measurements.estimate.forget()
    for _ in range(3 * TRIAL):
        assert not hear(made, 1, 1, teach=False)
    assert made.terms.drafting
    link(made, 2.0)
    until_it_changes(made, 1, teach=False)
    link(made, 0.020 * lead)
    for _ in range(3 * PAUSE):
        assert not hear(made, 1, 1, teach=False)
    assert not made.terms.drafting


@pytest.mark.parametrize("mode", ["cloud", "cloud-draft"])
def test_a_device_that_shall_not_draft_never_does(mode):
    made = modes(mode=mode)
    for _ in range(5 * TRIAL):
        assert not hear(made, 1, 0)
    assert not made.terms.drafting
    assert made.reason == "asked for"


def test_a_device_that_shall_draft_rests_where_it_is_useless():
    made = modes(mode="edge")
    assert until_it_changes(made, 0) == TRIAL
    assert made.name == "cloud"
    assert until_it_changes(made, 0) == PAUSE
    assert made.name == "edge"


@pytest.mark.parametrize("pre_draft", ["none", "exits"])
def test_lockstep_stays(pre_draft):
    made = modes(tactics=Tactics(pre_draft))
    for _ in range(5 * TRIAL):
        assert not hear(made, 1, 0)


DRAFTING = welcome(draft_ms=4.0)


@pytest.mark.parametrize(
    ("settings", "cloud", "drafts", "terms", "name"),
    [
        ({}, welcome(), True, Terms(hints=True), "edge"),
        ({}, welcome(hint_ms=0.8), True, Terms(hints=True), "edge"),
        ({}, welcome(hint_ms=3.0), True, Terms(), "edge"),
        ({}, welcome(exits=()), True, Terms(), "edge"),
        ({}, welcome(), False, Terms(drafting=False), "cloud"),
        ({}, DRAFTING, False, Terms(drafting=False, cloud_draft=True), "cloud-draft"),
        ({"mode": "edge"}, DRAFTING, True, Terms(hints=True), "edge"),
        ({"mode": "cloud"}, DRAFTING, True, Terms(drafting=False), "cloud"),
        ({"mode": "cloud-draft"}, DRAFTING, True, Terms(False, cloud_draft=True), "cloud-draft"),
        ({"mode": "cloud-draft"}, welcome(), True, Terms(drafting=False), "cloud"),
        (
            {},
            DRAFTING,
            True,
            Terms(cloud_draft=True, hints=True),
            "edge, with cloud-draft where nothing has come",
        ),
        ({"tactics": Tactics(hints=False)}, welcome(), True, Terms(), "edge"),
        ({"tactics": Tactics(hints=True)}, welcome(hint_ms=9.0), True, Terms(hints=True), "edge"),
        ({"tactics": Tactics(lockstep=True)}, welcome(exits=()), True, Terms(decoding=False),
         "edge"),
        ({"tactics": Tactics("none")}, welcome(), True, Terms(decoding=False), "edge"),
        ({"tactics": Tactics("none", lockstep=False)}, welcome(), True, Terms(), "edge"),
        (
            {"tactics": Tactics("exits")},
            welcome(hint_ms=9.0),
            True,
            Terms(decoding=False, hints=True),
            "edge",
        ),
        # A device that does not draft never makes the target wait.
        ({"tactics": Tactics("none")}, welcome(), False, Terms(drafting=False), "cloud"),
    ],
)  # fmt: skip
def test_terms(settings, cloud, drafts, terms, name):
    made = modes(drafts=drafts, cloud=cloud, **settings)
    assert (made.terms, made.name) == (terms, name)


def test_figures_name_what_was_measured():
    made = modes(cloud=DRAFTING)
    made.measurements.add_trip(0.0123)
    figures = made.figures
    assert "round trip 5.0 ms" in figures, "the shortest"
    assert "target step 30.0 ms" in figures and "draft step 10.0 ms" in figures
    assert "cloud draft step 4.0 ms" in figures and "acceptance rate 0." in figures


def test_a_clock_that_jumps_is_no_measurement():
    meter = Measurements(step=0.030)
    for seconds in (-3600.0, 3600.0):
        meter.add_trip(seconds)
        meter.add_draft_step(seconds, 1)
        meter.add_target_step(seconds, 1)
    timings = meter.timings
    assert (timings.round_trip, timings.step, timings.draft) == (0.0, 0.030, 0.0)
    for _ in range(60):
        meter.add_target_step(0.100, 2)
    assert meter.timings.step == pytest.approx(0.050, rel=0.01)
