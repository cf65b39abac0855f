"""Which step is worth most, as a table with figures worked out by hand."""

import pytest

from edge_runtime.policy import (
    LONGEST_LEAD_TOKENS,
    DraftTimings,
    best_together,
    choices,
)
from edge_runtime.tree import Tree
from edgespec.confidence import AcceptanceEstimate
from edgespec.policies import DraftPolicy
from engines.drafters.base import Guess

ALIKE = (1.0, 1.0, 1.0, 1.0)
"""A step over any number of paths takes the same time."""


def pace(acceptance=0.5, *, lead=0.0, together=(1.0,)):
    """Of a target step of 30 ms and a draft step of 10, so 20 ms are gained an id."""
    return DraftTimings(0.020 * lead, 0.030, 0.010, acceptance, together)


class Believed(AcceptanceEstimate):
    """Takes a draft at its word."""

    def probability(self, confidence):
        return confidence


def tree(*guesses):
    made = Tree([1, 2, 3], Believed())
    for guess in guesses:
        made.grow(made.main, guess)
    return made


def steps(made, at, *, most=8, branches=True):
    found = choices(made, at, DraftPolicy(), most=most, branches=branches)
    best = best_together(found, at.together, lambda choice: choice.worth)
    return [(round(worth, 6), path.round, place) for worth, path, place in best]


@pytest.mark.parametrize(
    ("round_trip", "step", "draft", "lead"),
    [
        (0.0, 0.030, 0.010, 0.0),
        (0.040, 0.030, 0.010, 2.0),
        (0.100, 0.030, 0.0, 10 / 3),
        (0.040, 0.010, 0.010, LONGEST_LEAD_TOKENS),
        (0.040, 0.010, 0.030, LONGEST_LEAD_TOKENS),
        (0.0, 0.010, 0.030, 0.0),
    ],
)
def test_the_lead_is_what_the_cloud_writes_meanwhile(round_trip, step, draft, lead):
    assert DraftTimings(round_trip, step, draft, 0.5).lead == pytest.approx(lead)


@pytest.mark.parametrize(("lead", "chance"), [(0.0, 0.5), (1.0, 0.25), (3.0, 0.0625)])
def test_overtaking_takes_the_lead_and_one_more(lead, chance):
    assert pace(0.5, lead=lead).overtaking == pytest.approx(chance)


DOUBT = (Guess(20, 0.9, ((30, 0.08),)), Guess(21, 0.4, ((31, 0.5),)))


@pytest.mark.parametrize(
    ("guesses", "at", "options", "expected"),
    [
        # Nothing is drafted: the first id is worth one full step.
        ((), pace(), {}, [(1.0, 1, None)]),
        # The main path is right with 0.9; its runner-up with 0.08.
        (DOUBT[:1], pace(), {}, [(0.9, 1, None)]),
        # 0.9 * 0.4 = 0.36 goes on, 0.9 * 0.5 = 0.45 forks.
        (DOUBT, pace(), {}, [(0.45, 1, 1)]),
        (DOUBT, pace(), {"branches": False}, [(0.36, 1, None)]),
        # Three together, if they cost no more than one …
        (DOUBT, pace(together=ALIKE), {}, [(0.45, 1, 1), (0.36, 1, None), (0.08, 1, 0)]),
        # … and two where the third adds 0.08 for a tenth: 0.81/1.2 > 0.89/1.4.
        (DOUBT, pace(together=(1.0, 1.2, 1.4)), {}, [(0.45, 1, 1), (0.36, 1, None)]),
        # One where two take twice the time.
        (DOUBT, pace(together=(1.0, 2.0, 3.0)), {}, [(0.45, 1, 1)]),
        # The cloud leads by 3: two ids are ahead and one is missing (0.36 * 0.5 = 0.18); a fork
        # behind the first misses one too (0.45 * 0.5), one before it two (0.08 * 0.25).
        (
            DOUBT,
            pace(lead=3, together=ALIKE),
            {},
            [(0.225, 1, 1), (0.18, 1, None), (0.02, 1, 0)],
        ),
        # What is far ahead is not discounted.
        (DOUBT, pace(lead=2, together=ALIKE), {"branches": False}, [(0.36, 1, None)]),
        # Full: the main path may not grow, and a fork at its end would have no room.
        (DOUBT, pace(together=ALIKE), {"most": 2}, [(0.08, 1, 0)]),
        (DOUBT, pace(together=ALIKE), {"most": 1}, []),
        (DOUBT, pace(together=ALIKE), {"most": 0}, []),
        # Below the floor.
        ((Guess(20, DraftPolicy().worth_floor - 0.001),), pace(), {}, []),
        ((), pace(0.5, lead=10), {}, []),
        ((), pace(0.5, lead=9), {}, [(0.001953, 1, None)]),
        ((), pace(0.9, lead=6), {}, [(0.531441, 1, None)]),
        # No runner-up.
        ((Guess(20, 0.5),), pace(together=ALIKE), {}, [(0.5, 1, None)]),
        # Of several runners-up the likeliest that is left; one step takes one of a place.
        (
            (Guess(20, 0.5, ((30, 0.3), (31, 0.1))),),
            pace(together=ALIKE),
            {},
            [(0.5, 1, None), (0.3, 1, 0)],
        ),
        # The draft has no guess.
        ((None,), pace(), {}, []),
        ((DOUBT[1], None), pace(), {}, [(0.5, 1, 0)]),
    ],
)
def test_the_worthiest_steps(guesses, at, options, expected):
    assert steps(tree(*guesses), at, **options) == expected


def test_branches_grow_and_only_the_main_path_is_forked():
    made = tree(*DOUBT)
    branch = made.fork(made.main, 1)
    made.grow(branch, Guess(41, 0.8, ((51, 0.15),)))
    assert sorted(steps(made, pace(together=ALIKE)), key=lambda step: step[1:2]) == [
        (0.36, 1, None),
        (0.08, 1, 0),
        (0.36, branch.round, None),
    ]


def test_a_place_is_forked_again_for_its_next_runner_up():
    made = tree(Guess(20, 0.5, ((30, 0.3), (31, 0.1))))
    made.fork(made.main, 0)
    assert steps(made, pace(together=ALIKE))[-1] == (0.1, 1, 0)
    made.fork(made.main, 0)
    assert (0.1, 1, 0) not in steps(made, pace(together=ALIKE))
