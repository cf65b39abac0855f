"""The cloud's next action, as tables. Times in milliseconds, figures worked out by hand."""

import itertools
import random

import pytest

from cloud_runtime.decision import Decision, Outlook, decide
from edgespec.policies import SchedulerPolicy

AHEAD = SchedulerPolicy().lookahead_tokens
SHORTEST = SchedulerPolicy().shortest_wait_s


def flat(rows, width):
    """18 ms and 2 for each token: 20 for one alone."""
    return 0.018 + 0.002 * rows * width


def steep(rows, width):
    """A session's first token 20 ms, and 10 for each further one."""
    return 0.010 + 0.010 * rows * width


def cloud_draft(milliseconds):
    """Step time of a cloud draft for any number of sessions, plus 0.5 ms for each further token
    that it reads."""
    return lambda sessions, width: (milliseconds + 0.5 * (width - 1)) / 1e3


DECODE = Decision("verify", 0)
SOON = (0.002, 0.004)
LACKS = Outlook(cloud_draft=True, cloud_draft_confidence=0.9)


@pytest.mark.parametrize(
    ("outlook", "step", "expected"),
    [
        # Nothing is here: 1 token in 20.
        (Outlook(), flat, DECODE),
        # 1/20 < 1.9/22 < 2.71/24 < 3.44/26
        (Outlook(arrived=(0.9, 0.9, 0.9)), flat, Decision("verify", 3)),
        # 1/20 < 1.9/30 = 0.063 > 1.945/40 = 0.049
        (Outlook(arrived=(0.9, 0.05, 0.05)), steep, Decision("verify", 1)),
        # A doubt in the middle that what follows makes up for: 1.2/22 = 0.055, 1.4/24 = 0.058
        (Outlook(arrived=(0.2, 0.99)), flat, Decision("verify", 2)),
        # 1.01/22 < 1/20: not worth its room in the step.
        (Outlook(arrived=(0.01, 0.9)), flat, DECODE),
        # 1.9/30 in a machine whose tokens cost much, but 1.4/30 < 1/20
        (Outlook(arrived=(0.4,)), steep, DECODE),
        # One on its way in 2 ms: 1.9/24 = 0.079; both 2.71/28 = 0.097. All of it beats 1/20.
        (Outlook(expected_s=SOON, expected_confidence=0.9), flat, Decision("wait", 0, 0.002)),
        # It is waited for the first, though the second decided.
        (
            Outlook(expected_s=(0.003, 0.004), expected_confidence=0.9),
            flat,
            Decision("wait", 0, 0.003),
        ),
        # Too far away: 1.9/82 < 1/20.
        (Outlook(expected_s=(0.060,), expected_confidence=0.9), flat, DECODE),
        # Seldom right: 1.05/24 < 1/20.
        (Outlook(expected_s=SOON, expected_confidence=0.05), flat, DECODE),
        # One here, one on its way: 1.9/22 = 0.086 < 2.71/26 = 0.104.
        (
            Outlook(arrived=(0.9,), expected_s=(0.002,), expected_confidence=0.9),
            flat,
            Decision("wait", 0, 0.002),
        ),
        # The same for one in 12 ms: 2.71/36 = 0.075.
        (
            Outlook(arrived=(0.9,), expected_s=(0.012,), expected_confidence=0.9),
            flat,
            Decision("verify", 1),
        ),
        # Due already: the shortest wait that there is.
        (Outlook(expected_s=(0.0,), expected_confidence=0.9), flat, Decision("wait", 0, SHORTEST)),
    ],
)
def test_of_one_session_the_best_rate_wins(outlook, step, expected):
    assert decide([outlook], step) == expected


@pytest.mark.parametrize(
    ("outlook", "milliseconds", "expected"),
    [
        # 1.9/25 = 0.076 > 1/20, and on: 5 ids 4.69/45 = 0.1041, 6 5.22/50 = 0.1043, 7 0.1036.
        (LACKS, 3, Decision("draft", 6)),
        # A slow one does not pay: 1.9/47 < 1/20, nor do more of its ids.
        (LACKS, 25, DECODE),
        # Nor one that is seldom right: 1.1/25 < 1/20.
        (Outlook(cloud_draft=True, cloud_draft_confidence=0.1), 3, DECODE),
        # With ids here that are almost certainly wrong, nothing behind them is worth drafting.
        (Outlook(arrived=(0.02,), cloud_draft=True, cloud_draft_confidence=0.9), 3, DECODE),
        # The device is faster than the draft here: 2.71/28 = 0.097 against at best 4.1/52 = 0.079.
        (
            Outlook(
                expected_s=SOON,
                expected_confidence=0.9,
                cloud_draft=True,
                cloud_draft_confidence=0.9,
            ),
            6,
            Decision("wait", 0, 0.002),
        ),
        # And the other way round: 2.71/36 = 0.075 against 5.7/48 = 0.1187.
        (
            Outlook(
                expected_s=(0.006, 0.012),
                expected_confidence=0.9,
                cloud_draft=True,
                cloud_draft_confidence=0.9,
            ),
            2,
            Decision("draft", 7),
        ),
        # Its terms do not allow it.
        (Outlook(cloud_draft_confidence=0.9), 3, DECODE),
        # A draft that costs nothing and is always right is asked for so many at a time.
        (Outlook(cloud_draft=True, cloud_draft_confidence=1.0), 0, Decision("draft", AHEAD)),
    ],
)
def test_the_cloud_draft_is_an_option_like_the_others(outlook, milliseconds, expected):
    assert decide([outlook], flat, cloud_draft(milliseconds)) == expected


def test_without_a_cloud_draft_nothing_is_drafted_in_the_cloud():
    assert decide([LACKS], flat) == DECODE


def test_the_cloud_draft_ends():
    """Each further token is worth less, so that verifying wins at some length."""
    here = []

    def decision():
        return decide(
            [Outlook(arrived=here, cloud_draft=True, cloud_draft_confidence=0.8)],
            flat,
            cloud_draft(3),
        )

    while decision().what == "draft":
        here.append(0.8)
    assert 2 <= len(here) <= 10
    assert decision().ids == len(here)


NO_DRAFT = Outlook()
CONFIDENT = Outlook(arrived=(0.95, 0.95))
DOUBTFUL = Outlook(arrived=(0.05, 0.05))
HALF = Outlook(arrived=(0.6,))


@pytest.mark.parametrize(
    ("outlooks", "expected"),
    [
        # Four tokens in 26.
        ([NO_DRAFT] * 4, DECODE),
        # Alone it is worth its room, 1.6/22 > 1/20, but not that of three more: 4/26 > 4.6/34.
        ([HALF], Decision("verify", 1)),
        ([HALF, *[NO_DRAFT] * 3], DECODE),
        # Where all have one it is again: 4/26 = 0.154 < 6.4/34 = 0.188.
        ([HALF] * 4, Decision("verify", 1)),
        # Doubtful ids are not worth it, 1/20 > 1.05/22, but cost nothing where another has two:
        # 2/22 < 3/26 < 3.905/30 = 0.130.
        ([DOUBTFUL], DECODE),
        ([CONFIDENT, DOUBTFUL], Decision("verify", 2)),
        # Two rows wide for one, four for many: 5/28 = 0.179 > 5.95/38 > 6.85/48.
        ([CONFIDENT, *[NO_DRAFT] * 4], DECODE),
        # One width for all: 4/26 = 0.154, 7.6/34 = 0.224, with one row longer 8.41/42 = 0.2.
        ([Outlook(arrived=(0.9, 0.9)), *[Outlook(arrived=(0.9,))] * 3], Decision("verify", 1)),
        # A row that has two tokens to run is as wide with none as its neighbour with one.
        ([Outlook(pending_tokens=2), DOUBTFUL], Decision("verify", 1)),
        ([Outlook(pending_tokens=2), Outlook(pending_tokens=2), DOUBTFUL], Decision("verify", 1)),
        # With its one id it is three wide, and so may its neighbour be: 2/26 < 2.4525/30.
        ([Outlook(arrived=(0.4,), pending_tokens=2), DOUBTFUL], Decision("verify", 2)),
    ],
)
def test_one_width_for_all_rows(outlooks, expected):
    assert decide(outlooks, flat) == expected
    assert decide(outlooks[::-1], flat) == expected


HERE = Outlook(arrived=(0.9,))


def soon(*coming):
    return Outlook(expected_s=coming, expected_confidence=0.9)


@pytest.mark.parametrize(
    ("outlooks", "expected"),
    [
        # 2/22 < 2.9/26 = 0.112 < 3.8/28 = 0.136
        ([HERE, soon(0.002)], Decision("wait", 0, 0.002)),
        # 3.8/38 = 0.1
        ([HERE, soon(0.012)], Decision("verify", 1)),
        # Until the first of them, though the second is why: 2/22, 2.9/29 = 0.1, 3.8/31 = 0.123.
        ([soon(0.003), soon(0.005)], Decision("wait", 0, 0.003)),
        # Nine sessions do not wait for one: 9/36 = 0.25 > 9.9/56.
        ([soon(0.002), *[NO_DRAFT] * 8], DECODE),
        # But all for all: 8/34 = 0.235 < 15.2/52 = 0.292.
        ([soon(0.002)] * 8, Decision("wait", 0, 0.002)),
        # Not for one far away: 2/22 > 3.8/66.
        ([soon(0.040), soon(0.040)], DECODE),
        # The wait is no longer than for the last token that is worth it: 2/22, 2.9/28, 2.9/86.
        ([soon(0.002), soon(0.060)], Decision("wait", 0, 0.002)),
    ],
)
def test_waiting_among_several(outlooks, expected):
    assert decide(outlooks, flat) == expected
    assert decide(outlooks[::-1], flat) == expected


THREE = Outlook(arrived=(0.9, 0.9, 0.9))


def per_session(sessions, width):
    """2 ms and 1 for each session."""
    return 0.002 + 0.001 * sessions


@pytest.mark.parametrize(
    ("outlooks", "expected"),
    [
        # Verify: 4.44/34 = 0.131. Bring the other to 1: 3.8/29 = 0.131, 2: 5.42/36 = 0.151,
        # 3: 6.88/43 = 0.160, 4: 7.53/50 = 0.151.
        ([THREE, LACKS], Decision("draft", 3)),
        # Both are drafted for at once: 3.8/30 = 0.127, 5.42/38 = 0.143, 6.88/46 = 0.150,
        # 8.19/54 = 0.152, 9.37/62 = 0.151.
        ([LACKS, LACKS], Decision("draft", 4)),
        # Six that decode make a step wide: 7/32 = 0.219 > 7.9/49.
        ([LACKS, *[NO_DRAFT] * 6], DECODE),
        # A draft that is seldom right is not worth its steps: 5.69/42 = 0.1354 > 6.22/46 = 0.1351.
        (
            [Outlook(arrived=(0.9,) * 6), Outlook(cloud_draft=True, cloud_draft_confidence=0.1)],
            Decision("verify", 5),
        ),
    ],
)
def test_the_cloud_draft_is_for_sessions_that_lack_tokens(outlooks, expected):
    assert decide(outlooks, flat, per_session) == expected
    assert decide(outlooks[::-1], flat, per_session) == expected


def test_sessions_that_lack_most_are_drafted_for_first():
    texts = []

    def counted(number, width):
        texts.append(number)
        return per_session(number, width)

    has_two = Outlook(arrived=(0.9, 0.9), cloud_draft=True, cloud_draft_confidence=0.9)
    decide([has_two, LACKS, NO_DRAFT], flat, counted)
    assert texts == [1, 1, *[2] * (AHEAD - 2)]


@pytest.mark.parametrize(
    ("unread", "expected"),
    [
        # 5.22/50 = 0.1043 > 4.69/45 and 5.70/55.
        (1, Decision("draft", 6)),
        # Reading is charged once, 20 ms: 6.13/84 = 0.0729 > 5.70/79.
        (41, Decision("draft", 8)),
        # 1/20 > 6.13/(64 + 100).
        (201, DECODE),
    ],
)
def test_tokens_that_the_cloud_draft_has_to_read_count(unread, expected):
    outlook = Outlook(cloud_draft=True, cloud_draft_confidence=0.9, unread_tokens=unread)
    assert decide([outlook], flat, cloud_draft(3)) == expected


LOCKSTEP = Outlook(arrived=(0.05, 0.05), lockstep=True)


@pytest.mark.parametrize(
    ("outlooks", "expected"),
    [
        # All of it, though 1/20 would be better …
        ([LOCKSTEP], Decision("verify", 2)),
        ([LOCKSTEP, NO_DRAFT], Decision("verify", 2)),
        ([Outlook(lockstep=True)], DECODE),
        # … and what others have more: 3.76/30 = 0.125 < 4.49/34 = 0.132.
        ([LOCKSTEP, THREE], Decision("verify", 3)),
        # Who is waited for meanwhile is a matter of rate: 3.95/32 = 0.124 > 2.05/30.
        ([LOCKSTEP, soon(0.002)], Decision("wait", 0, 0.002)),
        ([LOCKSTEP, soon(0.030)], Decision("verify", 2)),
    ],
)
def test_lock_step_verifies_what_came(outlooks, expected):
    assert decide(outlooks, flat) == expected
    assert decide(outlooks[::-1], flat) == expected


@pytest.mark.parametrize(
    ("weight", "expected"),
    [
        # 4/26 = 0.154 > 4.9/34
        (1.0, DECODE),
        # 5/26 = 0.192 < 6.8/34 = 0.2
        (2.0, Decision("verify", 1)),
    ],
)
def test_an_urgent_session_may_widen_the_step(weight, expected):
    assert decide([Outlook(arrived=(0.9,), weight=weight), *[NO_DRAFT] * 3], flat) == expected


TEN = (0.9,) * 10


@pytest.mark.parametrize(
    ("outlook", "widest", "expected"),
    [
        (Outlook(arrived=TEN), 1 << 16, Decision("verify", 10)),
        (Outlook(arrived=TEN), 11, Decision("verify", 10)),
        (Outlook(arrived=TEN), 4, Decision("verify", 3)),
        (Outlook(arrived=TEN, pending_tokens=2), 4, Decision("verify", 2)),
        (Outlook(arrived=TEN), 1, DECODE),
        # What is committed runs in any case, and so does a draft in lock-step.
        (Outlook(arrived=TEN, pending_tokens=9), 4, DECODE),
        (Outlook(arrived=TEN, lockstep=True), 4, Decision("verify", 10)),
        (LACKS, 1 << 16, Decision("draft", 6)),
        (LACKS, 3, Decision("draft", 2)),
        (LACKS, 1, DECODE),
    ],
)
def test_no_row_is_wider_than_allowed(outlook, widest, expected):
    assert decide([outlook], flat, cloud_draft(3), widest) == expected


def test_it_looks_no_further_than_it_must():
    far = [0.0] * (AHEAD - 1) + [0.001, 0.001]
    asked = []

    def step(rows, width):
        asked.append(width)
        return flat(rows, width)

    decide([Outlook(expected_s=far, expected_confidence=0.9)], step)
    assert max(asked) == 1 + AHEAD


def test_the_budget_is_that_of_trying_all():
    """The budget is compared with every number of draft tokens, summed session by session."""
    chance = random.Random(0)
    for _ in range(300):
        outlooks = [
            Outlook(
                arrived=[chance.random() for _ in range(chance.randint(0, 6))],
                pending_tokens=chance.randint(1, 2),
                weight=chance.choice([1.0, 2.0]),
            )
            for _ in range(chance.randint(1, 9))
        ]

        def rate(ids, outlooks=outlooks):
            tokens = sum(
                one.weight * (1 + sum(itertools.accumulate(one.arrived[:ids], lambda a, b: a * b)))
                for one in outlooks
            )
            width = max(one.pending_tokens + min(ids, len(one.arrived)) for one in outlooks)
            return tokens / steep(len(outlooks), width)

        rates = [rate(ids) for ids in range(7)]
        what, ids, _ = decide(outlooks, steep)
        assert what == "verify" and rates[ids] == pytest.approx(max(rates))
