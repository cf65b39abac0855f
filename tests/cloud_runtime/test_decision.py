"""What a session does next, as a table. Times in milliseconds, figures worked out by hand."""

import pytest

from cloud_runtime.decision import AHEAD, Decision, Outlook, decide


def flat(tokens):
    """A step of 20 ms and 2 for each further token."""
    return 0.020 + 0.002 * (tokens - 1)


def steep(tokens):
    """A step of 20 ms and 10 for each further token."""
    return 0.020 + 0.010 * (tokens - 1)


DECODE = Decision("verify", 0)
SOON = (0.002, 0.004)


@pytest.mark.parametrize(
    ("outlook", "step", "expected"),
    [
        # Nothing is here: 1 token in 20.
        (Outlook(), flat, DECODE),
        # 1/20 < 1.9/22 < 2.71/24 < 3.44/26
        (Outlook(here=(0.9, 0.9, 0.9)), flat, Decision("verify", 3)),
        # 1/20 < 1.9/30 = 0.063 > 1.945/40 = 0.049
        (Outlook(here=(0.9, 0.05, 0.05)), steep, Decision("verify", 1)),
        # A doubt in the middle that what follows makes up for: 1.2/22 = 0.055, 1.4/24 = 0.058
        (Outlook(here=(0.2, 0.99)), flat, Decision("verify", 2)),
        # 1.01/22 < 1/20: not worth its room in the step.
        (Outlook(here=(0.01, 0.9)), flat, DECODE),
        # 1.9/30 in a machine whose tokens cost much, but 1.4/30 < 1/20
        (Outlook(here=(0.4,)), steep, DECODE),
        # One on its way in 2 ms: 1.9/24 = 0.079; both 2.71/28 = 0.097. All of it beats 1/20.
        (Outlook(coming=SOON, coming_sure=0.9), flat, Decision("wait", 0, 0.002)),
        # It is waited for the first, though the second decided.
        (Outlook(coming=(0.003, 0.004), coming_sure=0.9), flat, Decision("wait", 0, 0.003)),
        # Too far away: 1.9/82 < 1/20.
        (Outlook(coming=(0.060,), coming_sure=0.9), flat, DECODE),
        # Seldom right: 1.05/24 < 1/20.
        (Outlook(coming=SOON, coming_sure=0.05), flat, DECODE),
        # Others run anyway.
        (Outlook(coming=SOON, coming_sure=0.9, company=True), flat, DECODE),
        (
            Outlook(here=(0.9,), coming=SOON, coming_sure=0.9, company=True),
            flat,
            Decision("verify", 1),
        ),
        # One here, one on its way: 1.9/22 = 0.086 < 2.71/26 = 0.104.
        (Outlook(here=(0.9,), coming=(0.002,), coming_sure=0.9), flat, Decision("wait", 0, 0.002)),
        # The same for one in 12 ms: 2.71/36 = 0.075.
        (Outlook(here=(0.9,), coming=(0.012,), coming_sure=0.9), flat, Decision("verify", 1)),
        # Due already: the shortest wait that there is.
        (Outlook(coming=(0.0,), coming_sure=0.9), flat, Decision("wait", 0, 0.001)),
        # Beside: 1.9/25 = 0.076 > 1/20.
        (Outlook(beside=0.003, beside_sure=0.9), flat, Decision("draft")),
        # A slow one does not pay: 1.9/47 < 1/20, nor do more of its ids.
        (Outlook(beside=0.025, beside_sure=0.9), flat, DECODE),
        # Nor one that is seldom right: 1.1/25 < 1/20.
        (Outlook(beside=0.003, beside_sure=0.1), flat, DECODE),
        # Company does not stop it.
        (Outlook(beside=0.003, beside_sure=0.9, company=True), flat, Decision("draft")),
        # With ids here that are sure to be wrong, nothing behind them is worth drafting.
        (Outlook(here=(0.02,), beside=0.003, beside_sure=0.9), flat, DECODE),
        # The device is faster than the draft here: 2.71/28 against 2.71/32.
        (
            Outlook(coming=SOON, coming_sure=0.9, beside=0.006, beside_sure=0.9),
            flat,
            Decision("wait", 0, 0.002),
        ),
        # And the other way round.
        (
            Outlook(coming=(0.006, 0.012), coming_sure=0.9, beside=0.002, beside_sure=0.9),
            flat,
            Decision("draft"),
        ),
    ],
)
def test_the_best_rate_wins(outlook, step, expected):
    assert decide(outlook, step) == expected


def test_drafting_beside_the_target_ends():
    """Each further id is worth less, so that at some length verifying wins."""
    here = []
    while decide(Outlook(here=here, beside=0.003, beside_sure=0.8), flat).what == "draft":
        here.append(0.8)
    assert 2 <= len(here) <= 10
    assert decide(Outlook(here=here, beside=0.003, beside_sure=0.8), flat).ids == len(here)


def test_it_looks_no_further_than_it_must():
    far = [0.0] * (AHEAD - 1) + [0.001, 0.001]
    asked = []

    def step(tokens):
        asked.append(tokens)
        return flat(tokens)

    decide(Outlook(coming=far, coming_sure=0.9), step)
    assert max(asked) == 1 + AHEAD
