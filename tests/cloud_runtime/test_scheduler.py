"""The next step, as tables: sessions, measured times and the clock in, a plan out."""

import pytest

from cloud_runtime.costs import Speeds, StepCosts
from cloud_runtime.scheduler import pick
from cloud_runtime.sessions import CloudSession, Connection, FirstVerdict
from cloud_runtime.steps import Batch, DraftStep, Wait
from edgespec.config import CloudSettings
from edgespec.policies import SchedulerPolicy
from edgespec.protocol import Draft, Terms
from edgespec.sampling import Sampling
from edgespec.session import Session

NOW = 100.0
POLICY = SchedulerPolicy()
PLAIN = Terms(drafting=False)
LOCKSTEP = Terms(decoding=False)
CLOUD_DRAFT = Terms(drafting=False, cloud_draft=True)
STEP = (0.020, 0.001, 0.001, 0.0)
"""20 ms, 1 for each row, 1 for each token."""
QUICK = (0.005, 0.0, 0.0002, 0.0)
"""Prompts: 32 tokens 11.4 ms, 64 17.8, 128 30.6, 256 56.2."""
SLOW = (0.010, 0.0, 0.001, 0.0)
"""Prompts: 32 tokens 42 ms."""


def speeds(step=STEP, chunks=QUICK, cloud_draft=None):
    return Speeds(
        StepCosts(step), StepCosts(chunks), StepCosts(cloud_draft) if cloud_draft else None
    )


def decoding(number, *, peer=None, length=3, pending=1, ready=NOW - 0.01, left=100, **about):
    """A session that decodes, without a target rate and after its first verdict."""
    terms, slot = about.pop("terms", PLAIN), about.pop("slot", number)
    opened, first = about.pop("opened", True), about.pop("first", None)
    state = Session(list(range(length)), length, left, frozenset())
    connection = Connection(peer or b"device %d" % number, NOW, about.pop("away", False))
    made = CloudSession(number, state, Sampling(), terms, connection, ready)
    if slot is not None:
        made.cache.give(slot, length - pending)
    made.progress.running = about.pop("running", False)
    made.progress.first_verdict = first or (FirstVerdict(NOW, length) if opened else None)
    made.drafts.waiting = about.pop("waiting", False)
    made.turn = made.turn._replace(paused=about.pop("paused", False))
    assert not about
    return made


def rated(number, due, *, rate=1.0, **about):
    """A session with a target rate, whose next token is due `due` seconds from now."""
    first = FirstVerdict(NOW + due - 1 / rate, about.get("length", 3))
    return decoding(number, terms=Terms(drafting=False, target_rate=rate), first=first, **about)


def drafted(one, ids, confidence=0.9):
    """Gives a session that many draft tokens of its device."""
    confidences = bytes([round(255 * confidence)] * ids)
    one.drafts.paths.add(Draft(one.id, 1, 0, one.length, [7] * ids, confidences))
    one.drafts.waiting = True
    return one


def planned(sessions, times=None, now=NOW, **settings):
    return pick(sessions, CloudSettings(**settings), times or speeds(), now)


def picked(sessions, times=None, now=NOW, **settings):
    return planned(sessions, times, now, **settings).step


def applied(plan):
    """The step of a plan, after its turns have been set."""
    for one, turn in plan.turns:
        one.turn = turn
    return plan.step


def ids_of(step):
    return [one.id for one in step.sessions]


def rows(batch):
    return dict(zip(ids_of(batch), batch.rows, strict=True))


def done(batch, now):
    """Ends a batch; each session whose row wanted a token has one more."""
    for one, row in zip(batch.sessions, batch.rows, strict=True):
        one.progress.ended_at = now
        end = row.start + len(row.tokens)
        one.cache.advance(min(end, one.length))
        if row.choice_count:
            one.state.commit([7])


@pytest.mark.parametrize(
    ("sessions", "order"),
    [
        # Without a target rate it is due since it could be served.
        ([decoding(1, ready=99.9), decoding(2, ready=99.8), decoding(3, ready=99.95)], [2, 1, 3]),
        # With a target rate, due half a second ago and in half a second.
        ([decoding(1, ready=99.6), rated(2, -0.5)], [2, 1]),
        ([rated(1, 0.5), decoding(2, ready=99.9)], [2, 1]),
        ([rated(1, -0.1), rated(2, -0.3), rated(3, -0.2)], [2, 3, 1]),
        # Later than that is not more urgent: the session that was served longest ago goes first.
        ([rated(1, -50.0, ready=99.9), decoding(2, ready=NOW - POLICY.lateness_s - 0.5)], [2, 1]),
        ([rated(1, -50.0, ready=98.0), decoding(2, ready=NOW - POLICY.lateness_s - 0.5)], [1, 2]),
        ([rated(1, -50.0), decoding(2, ready=NOW - POLICY.lateness_s / 2)], [1, 2]),
        ([decoding(1, ready=90.0), decoding(2, ready=80.0), decoding(3, ready=95.0)], [2, 1, 3]),
    ],
)
@pytest.mark.parametrize("most", [1, 2, 3, 0])
def test_the_earliest_due_goes_first(sessions, order, most):
    assert ids_of(picked(sessions, max_batch_rows=most)) == order[: most or None]


@pytest.mark.parametrize("rates", [0, 1, 5])
def test_no_session_starves(rates):
    """Sixty sessions share one row, steps of 100 ms; some have a target rate that is impossible."""
    sessions = [rated(n, -5.0, rate=1000.0, ready=NOW - 5) for n in range(rates)]
    sessions += [decoding(n, ready=NOW) for n in range(rates, 60)]
    served, now = dict.fromkeys(range(60), 0), NOW
    for _ in range(60 * 4):
        batch = applied(planned(sessions, now=now, max_batch_rows=1))
        now += 0.1
        done(batch, now)
        served[batch.sessions[0].id] += 1
    assert min(served.values()) >= 3
    assert max(served.values()) <= 5 + 10 * bool(rates), (
        "the first second belongs to the rated ones"
    )


@pytest.mark.parametrize(
    ("ready", "served"),
    [({}, True), ({"slot": None}, False), ({"away": True}, False), ({"running": True}, False),
     ({"terms": LOCKSTEP}, False), ({"terms": LOCKSTEP, "waiting": True}, True),
     ({"terms": LOCKSTEP, "opened": False}, True), ({"left": 1}, True)],
)  # fmt: skip
def test_a_session_that_is_not_ready_or_has_no_slot_is_not_served(ready, served):
    assert (picked([decoding(1, **ready)]) == Wait(None)) == (not served)
    batch = picked([decoding(1, **ready), decoding(2)])
    assert ids_of(batch) == ([1, 2] if served else [2])
    assert not any(one.progress.running for one in batch.sessions), "a plan changes nothing"
    for pending in (1, 40):
        assert (picked([decoding(1, length=50, pending=pending, **ready)]) == Wait(None)) != served


def early(seconds):
    """Three sessions, early by `seconds` or without a target rate; their step takes 29 ms."""
    return [decoding(8), decoding(9), decoding(7)] if seconds is None else [
        rated(n, seconds) for n in (7, 8, 9)
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("chunks", "others", "about", "settings", "width"),
    [
        # No other session waits: as wide as it may be.
        (QUICK, [], {}, {}, 64),
        (QUICK, [], {}, {"prefill_chunk": 512}, 512),
        # No longer than a step of those who wait, which takes 29 ms.
        (QUICK, early(None), {}, {"prefill_chunk": 512}, 64),
        (QUICK, early(None), {}, {"prefill_chunk": 40}, 40),
        (QUICK, early(-9.0), {}, {"prefill_chunk": 512}, 64),
        # Where they are early, until they are due, but no longer than two of their steps: 58 ms.
        (QUICK, early(0.040), {}, {"prefill_chunk": 512}, 128),
        (QUICK, early(1.0), {}, {"prefill_chunk": 512}, 256),
        # A machine that reads slowly gets on all the same.
        (SLOW, early(None), {}, {"prefill_chunk": 512}, 32),
        # What is cached of it costs, here 5 ms for 1000: 22.8 ms, then 27.8.
        ((*QUICK[:3], 5e-6), early(None), {"cached": 1000}, {"prefill_chunk": 512}, 64),
        ((*QUICK[:3], 5e-6), early(None), {"cached": 3000}, {"prefill_chunk": 512}, 32),
        # Its rest.
        (QUICK, [], {"cached": 3990}, {}, 10),
        (QUICK, early(None), {"cached": 3990}, {}, 10),
    ],
)
def test_a_prompts_chunk_takes_as_long_as_waiting_sessions_can_bear(
    chunks, others, about, settings, width
):
    cached = about.get("cached", 0)
    prompt = decoding(1, length=4000, pending=4000 - cached, ready=NOW - 1)
    batch = picked([*others, prompt], speeds(chunks=chunks), **settings)
    assert (ids_of(batch), batch.width) == ([1], width)
    assert batch.cached == cached
    assert batch.rows[0].choice_count == (cached + width == 4000)


def test_a_long_prompt_and_the_others_take_turns():
    """However long the prompt is, no session waits for more than one chunk of it."""
    prompt, others = decoding(1, length=2014, pending=2014), [decoding(n) for n in (2, 3, 4)]
    times, now, turns = speeds(), NOW, []
    waited = dict.fromkeys((2, 3, 4), NOW)
    while prompt.pending > POLICY.narrow_tokens:
        batch = applied(planned([prompt, *others], times, now))
        seconds = times.for_width(batch.width).step(batch.width, len(batch.rows), batch.cached)
        own = times.costs.step(POLICY.narrow_tokens, len(others))
        assert seconds <= own
        now += seconds
        turns.append(ids_of(batch))
        for session in turns[-1]:
            if session != 1:
                assert now - waited[session] < (1 + POLICY.chunk_steps) * own
                waited[session] = now
        done(batch, now)
    assert turns[0] == [1], "it has waited as long as they have"
    assert turns[::2] == [[1]] * len(turns[::2])
    assert all(set(turn) == {2, 3, 4} for turn in turns[1::2])
    assert set(ids_of(picked([prompt, *others], times, now))) == {1, 2, 3, 4}, "it is none now"


def test_new_short_sessions_do_not_keep_a_prompt_waiting():
    """Short answers arrive all the time, each opened when the prompt's last chunk ended."""
    prompt, now, chunks = decoding(1, length=2000, pending=2000), NOW, 0
    for number in range(2, 60):
        batch = picked([prompt, decoding(number, ready=now)], now=now)
        now += 0.030
        chunks += ids_of(batch) == [1]
        done(batch, now)
    assert chunks >= 25


def prompts(*lengths):
    """Sessions with prompts of these lengths; the first was opened first."""
    return [
        decoding(n, length=length, pending=length, ready=NOW - 9 + n, opened=False)
        for n, length in enumerate(lengths, 1)
    ]


@pytest.mark.parametrize(
    ("waiting", "others", "settings", "order", "width"),
    [
        # Alone they share a step, as many tokens as one may have, the first come first.
        (prompts(64, 64), [], {}, [1, 2], 64),
        (prompts(64, 64)[::-1], [], {}, [1, 2], 64),
        (prompts(64, 64, 64, 64, 64, 64), [], {}, [1, 2, 3, 4], 64),
        (prompts(64, 64, 64), [], {"max_batch_tokens": 8}, [1], 64),
        (prompts(64, 64, 64), [], {"max_batch_rows": 2}, [1, 2], 64),
        # The first decides the width.
        (prompts(20, 64), [], {}, [1, 2], 20),
        (prompts(64, 20), [], {}, [1, 2], 64),
        # With others waiting as many as fit in 29 ms: 45 tokens 14, 90 23, 135 32.
        (prompts(45, 45, 45), [7, 8, 9], {}, [1, 2], 45),
        (prompts(64, 64), [7, 8, 9], {}, [1], 64),
        # So few that they cost what a row of decoding does.
        (prompts(3, 3), [7, 8, 9], {}, [1, 2], 3),
    ],
)
def test_several_prompts(waiting, others, settings, order, width):
    batch = picked([*(decoding(n) for n in others), *waiting], **settings)
    assert (ids_of(batch), batch.width) == (order, width)


@pytest.mark.parametrize(
    ("sessions", "position", "served"),
    [
        # 20 ms and 3 a row: one each of three devices 29 ms, with 10 % more 31.9.
        ([*"abc"], 0.0, [1, 2, 3]),
        ([*"abca"], 0.0, [1, 2, 3]),
        # Of ten devices 50 ms: one more is 53, two are 56.
        ([*"abcdefghij", *"aab"], 0.0, [*range(1, 12)]),
        # The most urgent of each device, and of the others.
        ([*"aab"], 0.0, [1, 3]),
        ([*"baa"], 0.0, [1, 2]),
        # One device alone may have the whole step.
        ([*"aaaaaa"], 0.0, [1, 2, 3, 4, 5, 6]),
        # Each holds 999 cached positions, of 10 µs: three 59 ms, with 10 % 64.9, four 72.
        ([*"abca"], 1e-5, [1, 2, 3]),
    ],
)
def test_further_sessions_of_a_device_wait_where_they_cost_the_others_much(
    sessions, position, served
):
    held = [
        decoding(n, peer=peer.encode(), ready=NOW - 1 + n / 100, length=1000)
        for n, peer in enumerate(sessions, 1)
    ]
    batch = picked(held, speeds((*STEP[:3], position)))
    assert ids_of(batch) == served
    first = len(set(sessions))
    if len(served) > first > 1:
        assert 20 + 3 * len(served) <= (1 + POLICY.further_sessions_cost) * (20 + 3 * first)


def test_the_sessions_of_a_device_take_turns_that_last_a_while():
    """Six sessions of one device and one of another, for six turns each. Slots are not moved at
    every step."""
    sessions = [decoding(n, peer=b"a", ready=NOW - n / 1e3, left=4000) for n in range(6)]
    sessions += [decoding(9, peer=b"b", left=4000)]
    now, served, changes, last = NOW, dict.fromkeys([*range(6), 9], 0), 0, []
    while now < NOW + 36 * POLICY.turn_s:
        batch = applied(planned(sessions, now=now))
        now += 0.026
        done(batch, now)
        for session in ids_of(batch):
            served[session] += 1
        changes += sorted(ids_of(batch)) != last
        last = sorted(ids_of(batch))
    steps = served.pop(9)
    assert sum(served.values()) == steps == pytest.approx(36 * POLICY.turn_s / 0.026, abs=2)
    assert min(served.values()) > steps / 6 - 3 * POLICY.turn_s / 0.026
    assert changes <= 37


def test_a_plan_changes_no_session():
    """The turns of a plan are values; the same sessions give the same plan again."""
    late = [rated(n, due) for n, due in ((1, -0.1), (2, POLICY.pause_s + 1))]
    busy = [decoding(n, peer=b"a") for n in range(3, 9)]
    sessions = [*late, *busy, drafted(decoding(9, terms=Terms()), 3)]
    before = [(one.turn, one.progress.running, one.cache.length, one.ahead) for one in sessions]
    first, again = planned(sessions), planned(sessions)
    assert [(one.turn, one.progress.running, one.cache.length, one.ahead) for one in sessions] == (
        before
    )
    assert first == again and ids_of(first.step)
    changed = {one.id: turn for one, turn in first.turns}
    assert changed[2].paused and any(changed[n].left_out for n in range(3, 9) if n in changed)


@pytest.mark.parametrize(
    ("late", "due", "before", "paused"),
    [
        (-0.1, POLICY.pause_s + 0.1, False, True),
        (-0.1, POLICY.pause_s - 0.1, False, False),
        (-0.1, POLICY.pause_s - 0.1, True, True),
        (-0.1, POLICY.resume_s + 0.01, True, True),
        (-0.1, POLICY.resume_s - 0.01, True, False),
        (-0.1, -0.2, True, False),
        # No session is late, so none is left out.
        (0.1, POLICY.pause_s + 9, False, False),
        (0.1, POLICY.pause_s + 9, True, False),
    ],
)
def test_an_early_session_is_left_out_while_another_is_late(late, due, before, paused):
    one = rated(1, due, paused=before)
    step = applied(planned([rated(2, late), one, decoding(3)]))
    assert sorted(ids_of(step)) == ([2, 3] if paused else [1, 2, 3])
    assert one.turn.paused == paused


def test_without_a_target_rate_no_session_is_late_or_early():
    sessions = [decoding(1, ready=NOW - 60), rated(2, 5.0), decoding(3)]
    assert sorted(ids_of(picked(sessions))) == [1, 2, 3]
    first_token = decoding(4, terms=Terms(target_rate=5.0), opened=False, ready=NOW - 60)
    assert sorted(ids_of(picked([*sessions, first_token]))) == [1, 2, 3, 4]


def test_the_early_give_way_until_the_late_one_is_not_late_any_more():
    """Rows for all, but the steps are too long for the session with the highest target rate."""
    fast = rated(0, -0.2, rate=20.0, left=4000)
    slow = [rated(n, 1.0, rate=2.0, left=4000) for n in range(1, 12)]
    times, now, counts = speeds(), NOW, []
    for _ in range(400):
        batch = applied(planned([fast, *slow], times, now))
        assert 0 in ids_of(batch)
        now += times.costs.step(1, len(batch.rows))
        done(batch, now)
        counts.append(len(batch.rows))
    assert min(counts) <= 2 and max(counts) == 12
    for one in (fast, *slow):
        since, length = one.progress.first_verdict
        rate = (one.length - length) / (now - since)
        assert rate > 0.95 * one.terms.target_rate, "the target rate was kept"


@pytest.mark.parametrize(
    ("ids", "left", "most", "width"),
    [
        (3, 100, 32, 4),
        (6, 100, 4, 5),
        (6, 100, 0, 1),
        # The target's own token is one of those that may still be committed.
        (6, 7, 32, 7),
        (6, 3, 32, 3),
        (6, 1, 32, 1),
    ],
)
@pytest.mark.parametrize("terms", [LOCKSTEP, Terms()], ids=["lock-step", "streaming"])
@pytest.mark.parametrize("shared", [False, True])
def test_no_more_ids_than_may_be_verified_and_committed(ids, left, most, width, terms, shared):
    one = drafted(decoding(1, terms=terms, left=left), ids, 0.99)
    others = [decoding(2)] if shared else []
    batch = picked([one, *others], speeds((0.050, 0.001, 1e-5, 0.0)), max_draft=most)
    row = rows(batch)[1]
    assert len(row.tokens) == row.choice_count == width
    assert len(batch.entries[ids_of(batch).index(1)].draft) == width - 1


def test_lock_step_verifies_all_that_came_and_others_do_as_pays():
    """Doubtful tokens are verified in lockstep, and not where the target decodes by itself."""
    doubtful = [
        drafted(decoding(n, terms=terms), 5, 0.02) for n, terms in ((1, LOCKSTEP), (2, Terms()))
    ]
    assert [len(row.tokens) for row in picked(doubtful[1:]).rows] == [1]
    assert [len(row.tokens) for row in picked(doubtful[:1]).rows] == [6]
    batch = picked([*doubtful, decoding(3)])
    widths = {session: len(row.tokens) for session, row in rows(batch).items()}
    assert widths == {1: 6, 2: 6, 3: 1}, "the step is as wide anyway"


def test_hints_are_for_sessions_that_verify_and_asked():
    sessions = [
        drafted(decoding(1, terms=Terms(hints=True)), 2),
        drafted(decoding(2, terms=Terms()), 2),
        decoding(3, terms=Terms(hints=True)),
    ]
    hints = {session: row.hints for session, row in rows(picked(sessions)).items()}
    assert hints == {1: True, 2: False, 3: False}
    assert not any(row.hints for row in picked(sessions, hints=False).rows)


DRAFT = (0.001, 0.0001, 0.0, 0.0)


@pytest.mark.parametrize("max_draft", [3, 32])
def test_the_cloud_draft_is_for_sessions_that_lack_tokens_and_can_use_them(max_draft):
    sessions = [
        decoding(1, terms=CLOUD_DRAFT),
        decoding(2, terms=CLOUD_DRAFT, left=3),
        decoding(3),
        drafted(decoding(4, terms=Terms(cloud_draft=True)), 2),
        drafted(decoding(5, terms=Terms(cloud_draft=True, decoding=False)), 2),
        decoding(6, terms=CLOUD_DRAFT, opened=False),  # nothing is drafted before the first verdict
        decoding(7, terms=CLOUD_DRAFT, left=1),
    ]
    asked = []
    while isinstance(
        step := picked(sessions, speeds(cloud_draft=DRAFT), max_draft=max_draft), DraftStep
    ):
        asked.append(ids_of(step))
        for one in step.sessions:
            one.add_cloud_token(9, 0.95)
    assert asked[:2] == [[1, 2], [1, 2]]
    assert asked[2:] == [[1, 4]] * len(asked[2:]), "the others have what they can use"
    ahead = {one.id: one.ahead for one in sessions}
    assert ahead[1] == ahead[4] == len(asked) <= max_draft
    assert (ahead[2], ahead[3], ahead[5], ahead[6], ahead[7]) == (2, 0, 2, 0, 0)
    assert {session: len(row.tokens) - 1 for session, row in rows(step).items()} == ahead


def test_without_a_cloud_draft_there_are_no_draft_steps():
    assert isinstance(picked([decoding(1, terms=CLOUD_DRAFT)]), Batch)


def expecting(number):
    """A session whose draft tokens arrive every 2 ms, the next in 1 ms."""
    one = decoding(number, terms=Terms())
    one.drafts.arrivals.verdict_sent(3, now=NOW - 0.010)
    for base, when in ((3, NOW - 0.003), (4, NOW - 0.001)):
        message = Draft(number, 1, 0, base, [7], bytes([240]))
        path = one.drafts.paths.add(message)
        one.drafts.arrivals.draft_arrived(message, path, when)
    return one


@pytest.mark.parametrize(
    ("sessions", "waits"),
    [
        ([expecting(1)], True),
        ([expecting(1), expecting(2)], True),
        # Eight whose tokens are as good now as later.
        ([expecting(1), *(decoding(n) for n in range(2, 10))], False),
    ],
)
def test_waiting_depends_on_the_rate_of_all_sessions(sessions, waits):
    step = picked(sessions)
    assert isinstance(step, Wait if waits else Batch)
    if waits:
        assert step.seconds == pytest.approx(0.001)
