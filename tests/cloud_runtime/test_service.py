"""The service as a table: packets in, replies and batches out."""

import random

import msgspec
import numpy as np
import pytest

from cloud_runtime.costs import Speeds, StepCosts
from cloud_runtime.service import Identity, Service
from cloud_runtime.steps import Batch, DraftStep, Wait
from edgespec.config import CloudSettings
from edgespec.policies import LinkLimits
from edgespec.protocol import (
    VERSION,
    Admitted,
    Close,
    Draft,
    Drain,
    Hello,
    Hint,
    Open,
    Ping,
    Pong,
    Resume,
    Serve,
    Terms,
    Verdict,
    Welcome,
    pack,
)
from edgespec.sampling import Sampling
from engines.alone import write_alone
from engines.drafters.base import Guess
from engines.toy import ToyEngine

SECRET = bytes(16)

HELLO = Hello(VERSION, "t", "k", "robot")
A, B = b"a", b"b"
LOCKSTEP = Terms(decoding=False)
PLAIN = Terms(drafting=False)
CLOUD_DRAFT = Terms(drafting=False, cloud_draft=True)


class Desk:
    """A service, its engine, and a clock that the test sets."""

    def __init__(self, *, cloud_draft=0.0, **settings):
        self.engine = ToyEngine(context=200)
        self.service = Service(
            Identity("t", "k", (1, 2)),
            self.engine,
            CloudSettings(**settings),
            Speeds(cloud_draft=StepCosts((cloud_draft, 0.0, 0.0, 0.0)) if cloud_draft else None),
        )
        self.now = 0.0

    def tell(self, message, peer=A):
        replies = self.service.receive(peer, pack(message), self.now)
        assert all(to == peer for to, _ in replies)
        return [reply for _, reply in replies]

    def batch(self):
        batch = self.service.stepping.next(self.now)
        assert isinstance(batch, Batch)
        return batch

    def turn(self):
        """Runs one batch, if there is one; returns its messages."""
        batch = self.service.stepping.next(self.now)
        if not isinstance(batch, Batch):
            assert batch == Wait(None)
            return []
        return self.run(batch)

    def run(self, batch):
        sent = []
        for step in self.engine.run(batch.rows):
            if step.final:
                sent += self.service.stepping.commit(batch, step.choices, self.now)
            else:
                sent += self.service.stepping.hints(batch, step.layer, step.choices)
        return sent

    def verdict(self):
        """The only verdict of one turn."""
        (found,) = [message for _, message in self.turn() if isinstance(message, Verdict)]
        return found


def text(prompt=(1, 2, 3), most=20):
    """Prompt and answer as the target writes them."""
    return [*prompt, *write_alone(ToyEngine(context=200), prompt, most, Sampling())]


def opening(session=1, prompt=(1, 2, 3), **changes):
    values = {
        "session": session,
        "secret": SECRET,
        "prompt_length": len(prompt),
        "max_tokens": 20,
        "sampling": Sampling(),
        "end_ids": [],
        "terms": LOCKSTEP,
        "tokens": list(prompt),
    }
    return Open(**{**values, **changes})


@pytest.fixture
def desk():
    desk = Desk()
    assert isinstance(desk.tell(HELLO)[0], Welcome)
    return desk


@pytest.mark.parametrize(
    ("hello", "code"),
    [
        (Hello(VERSION + 1, "t", "k", "x"), "version"),
        (Hello(VERSION, "other", "k", "x"), "bundle"),
        (Hello(VERSION, "t", "other", "x"), "tokenizer"),
    ],
)
def test_another_version_bundle_or_tokenizer_is_refused_with_a_sentence(hello, code):
    (error,) = Desk().tell(hello)
    assert error.code == code
    assert len(error.message.split()) > 6


@pytest.mark.parametrize(
    ("packet", "older"),
    [
        # written by edgespec when its protocol was number 3
        (b"\x97\xa5hello\x03\xa1t\xa1k\xa7robot-7\xa8cpu-int8\xaeRaspberry Pi 5", "device"),
        (msgspec.msgpack.encode(["hello", 3, "t"]), "device"),
        (msgspec.msgpack.encode(["hello", VERSION + 1, *"abcdefgh"]), "cloud"),
    ],
)
def test_a_device_of_another_version_is_told_which_side_to_update(packet, older):
    ((_, error),) = Desk().service.receive(b"peer", [packet], 0.0)
    assert error.code == "version"
    assert error.message.endswith(f"update edgespec on the {older}")


def test_welcome_says_what_the_device_must_know():
    (welcome,) = Desk(cloud_draft=0.004).tell(HELLO)
    assert (welcome.context, welcome.exits, welcome.max_draft) == (200, [1, 2], 32)
    # What `StepCosts` takes for granted before anything was measured.
    times = (welcome.step_ms, welcome.token_ms, welcome.draft_ms, welcome.hint_ms)
    assert times == pytest.approx((22.0, 1.0, 4.0, 0.0))
    (plain,) = Desk(hints=False).tell(HELLO)
    assert (plain.exits, plain.draft_ms) == ([], 0.0)


def test_nothing_before_hello():
    assert Desk().tell(opening())[0].code == "hello"
    assert Desk().tell(Ping(4)) == [Pong(4)]


@pytest.mark.parametrize(
    ("message", "words"),
    [
        (opening(prompt=range(50), max_tokens=151), "do not fit a context of 200"),
        (opening(max_tokens=0), "do not fit"),
        (opening(prompt_length=4), "prompt of 4 in 3"),
        (opening(prompt_length=0), "prompt of 0"),
        (opening(prompt=(1, 50)), "token 50 of a vocabulary of 50"),
        (opening(sampling=Sampling(-1.0)), "temperature"),
        (opening(sampling=Sampling(min_p=float("nan"))), "min-p is nan"),
        (opening(sampling=Sampling(logit_bias=((50, 1.0),))), "token 50 of a vocabulary of 50"),
        (Hint(1, 1, 1, 1, []), "does not send Hint"),
    ],
)
def test_what_cannot_be_served_is_refused_and_leaves_nothing(desk, message, words):
    (error,) = desk.tell(message)
    assert error.code == "invalid"
    assert words in error.message
    assert desk.service.sessions.active == 0
    assert desk.turn() == []


def test_a_round(desk):
    assert desk.tell(opening(terms=Terms(decoding=False, hints=True))) == [Admitted(1)]
    (first,) = [message for _, message in desk.turn()]  # no hints where nothing is verified
    assert (first.round, first.base, first.accepted, len(first.tokens)) == (0, 3, 0, 1)
    assert desk.turn() == []
    assert desk.tell(Draft(1, 1, 0, 4, [7, 7])) == []
    sent = [message for _, message in desk.turn()]
    assert [type(message) for message in sent] == [Hint, Hint, Verdict]
    assert [(hint.layer, hint.base, len(hint.tokens)) for hint in sent[:2]] == [
        (1, 4, 3),
        (2, 4, 3),
    ]
    assert (sent[2].round, sent[2].base, sent[2].verified) == (1, 4, 2)
    assert len(sent[2].tokens) == sent[2].accepted + 1


def test_an_empty_draft_asks_for_the_targets_token(desk):
    desk.tell(opening())
    desk.turn()
    desk.tell(Draft(1, 1, 0, 4, []))
    verdict = desk.verdict()
    assert (verdict.base, verdict.verified, len(verdict.tokens)) == (4, 0, 1)
    assert desk.turn() == []


def test_repeated_stale_and_early_drafts_change_nothing(desk):
    right = text()
    desk.tell(opening())
    desk.turn()
    desk.tell(Draft(1, 1, 0, 4, [right[4], 7]))
    assert desk.tell(Draft(1, 1, 0, 4, [9, 9])) == []
    verdict = desk.verdict()
    assert (verdict.base, verdict.verified, verdict.accepted) == (4, 2, 1)
    assert verdict.tokens == right[4:6] and right[5] != 7
    for late in (
        Draft(1, 1, 0, 4, [right[4], 7]),  # the same again
        Draft(1, 2, 0, 3, [right[3] ^ 1]),  # stale, and wrong
        Draft(1, 3, 0, 99, [7]),  # early: what lies between never came
        Draft(1, 4, 77, 6, [7]),  # of a parent that never came
        Draft(1, 1, 0, 8, [7]),  # a gap in its round
    ):
        assert desk.tell(late) == []
        assert desk.turn() == []
    assert desk.tell(Resume(1, SECRET, 3))[0].tokens == right[3:6]


def test_of_a_late_draft_only_what_lies_beyond_the_text_is_verified(desk):
    right = text()
    desk.tell(opening(terms=Terms()))
    for _ in range(3):
        desk.turn()
    desk.tell(Draft(1, 1, 0, 3, right[3:9], bytes([250] * 6)))
    verdict = desk.verdict()
    assert (verdict.round, verdict.base, verdict.verified, verdict.accepted) == (1, 6, 3, 3)
    assert verdict.tokens == right[6:10]


def test_a_branch_is_verified_as_soon_as_a_verdict_names_it(desk):
    right = text()
    desk.tell(opening())
    desk.turn()
    wrong = (right[5] + 1) % 50
    desk.tell(Draft(1, 1, 0, 4, [right[4], wrong, 7]))
    desk.tell(Draft(1, 2, 1, 5, [right[5], right[6]]))
    assert desk.verdict().tokens == right[4:6]
    verdict = desk.verdict()
    assert (verdict.round, verdict.base, verdict.accepted) == (2, 6, 1)
    assert verdict.tokens == right[6:8]
    assert desk.turn() == []


def test_probabilities_belong_to_ids(desk):
    desk.tell(opening())
    desk.turn()
    (error,) = desk.tell(Draft(1, 1, 0, 4, [7, 8, 9], b"\x01"))
    assert (error.code, error.session) == ("invalid", 1)
    assert "1 probabilities for 3 ids" in error.message
    assert desk.turn() == []


def test_ids_that_the_target_lacks_end_a_draft(desk):
    desk.tell(opening())
    desk.turn()
    desk.tell(Draft(1, 1, 0, 4, [7, 50, 7], b"\xff\xff\xff"))
    assert list(desk.batch().rows[0].tokens)[1:] == [7]


def test_the_rest_of_a_draft_that_is_too_long_waits(desk):
    desk = Desk(max_draft=2)
    desk.tell(HELLO)
    right = text()
    desk.tell(opening())
    desk.turn()
    desk.tell(Draft(1, 1, 0, 4, right[4:10]))
    assert [desk.verdict().tokens for _ in range(2)] == [right[4:7], right[7:10]]
    assert desk.turn() == []


def test_terms_may_change_at_any_time(desk):
    desk.tell(opening())
    desk.turn()
    assert desk.turn() == []
    assert desk.tell(Serve(1, SECRET, PLAIN)) == []
    assert len(desk.verdict().tokens) == 1
    desk.tell(Draft(1, 1, 0, 5, [7]))
    assert desk.verdict().verified == 0, "the device does not draft any more"
    desk.tell(Serve(1, SECRET, LOCKSTEP))
    assert desk.tell(Serve(99, SECRET, PLAIN)) == []


def test_the_cloud_draft_is_asked_verified_and_stopped():
    desk = Desk(cloud_draft=1e-4)
    right = text()
    desk.tell(HELLO)
    desk.tell(opening(terms=CLOUD_DRAFT))
    desk.turn()
    drafted = 0
    while isinstance(step := desk.service.stepping.next(desk.now), DraftStep):
        assert step.sessions[0].draft_prefix == right[: 4 + drafted]
        desk.service.stepping.drafted(step, [Guess(right[4 + drafted], 0.9)])
        drafted += 1
    assert drafted > 2
    (verdict,) = [m for _, m in desk.run(step) if isinstance(m, Verdict)]
    assert (verdict.round, verdict.accepted) == (0, 0), "nothing of the device's"
    assert (verdict.verified, verdict.confirmed) == (drafted, drafted)
    assert verdict.tokens == right[4 : 5 + drafted]
    step = desk.service.stepping.next(desk.now)
    desk.service.stepping.drafted(step, [None])
    assert isinstance(desk.service.stepping.next(desk.now), Batch), "it had nothing to say"
    # One that is wrong costs nothing but time.
    desk = Desk(cloud_draft=1e-4)
    desk.tell(HELLO)
    desk.tell(opening(terms=CLOUD_DRAFT))
    written = []
    while desk.service.sessions.active:
        step = desk.service.stepping.next(desk.now)
        if isinstance(step, DraftStep):
            desk.service.stepping.drafted(step, [Guess(7, 0.9)])
        else:
            written += [t for _, m in desk.run(step) if isinstance(m, Verdict) for t in m.tokens]
    assert written == right[3:]


def test_a_step_that_took_longer_is_remembered(desk):
    desk.tell(opening(terms=PLAIN))
    batch = desk.batch()
    before = desk.service.speeds.costs.step(3)
    desk.service.stepping.learn(batch, 5.0)
    assert desk.service.speeds.costs.step(3) > 10 * before


def test_connections_are_forgotten_when_they_are_too_many(desk):
    for number in range(LinkLimits().known_devices):
        desk.tell(HELLO, number.to_bytes(4, "big"))
    assert desk.tell(opening())[0].code == "hello"
    assert desk.tell(opening(), (5).to_bytes(4, "big")) == [Admitted(1)]


def test_resume_tells_everything_since(desk):
    desk.tell(opening(terms=PLAIN))
    written = [message.tokens[0] for _ in range(5) for _, message in desk.turn()]
    (verdict,) = desk.tell(Resume(1, SECRET, 5))
    assert (verdict.base, verdict.tokens) == (5, written[2:])
    assert desk.tell(Resume(2, SECRET, 5))[0].code == "session"
    assert desk.tell(Resume(1, SECRET, 99))[0].code == "session"


def test_an_open_that_is_repeated_resumes_and_one_that_differs_is_refused(desk):
    desk.tell(opening(terms=PLAIN))
    (first,) = [message.tokens[0] for _, message in desk.turn()]
    (verdict,) = desk.tell(opening(terms=PLAIN))
    assert verdict.tokens == [first]
    assert desk.tell(opening(prompt=(9, 9)))[0].code == "invalid"
    assert desk.service.sessions.active == 1


def test_a_session_that_a_late_packet_opened_gives_way_to_a_later_open(desk):
    """The packet was meant for a cloud that has restarted since; the device has more tokens."""
    desk.tell(opening(terms=PLAIN))
    later = opening(tokens=text()[:8], terms=PLAIN)
    assert desk.tell(later) == [Admitted(1)]
    assert desk.verdict().base == 8
    assert desk.service.sessions.active == 1


def test_a_long_prompt_runs_in_chunks_and_takes_turns_with_others():
    desk = Desk(prefill_chunk=16)
    desk.tell(HELLO)
    desk.tell(HELLO, B)
    desk.tell(opening(1, range(50)))
    desk.tell(opening(2, (1, 2), terms=PLAIN), B)
    peers = []
    for _ in range(6):
        desk.now += 0.1
        peers.append({to for to, _ in desk.turn()})
    # The last two tokens of 50 are as narrow as a row of the other's, so they run beside it.
    assert peers == [set(), {B}, set(), {B}, set(), {A, B}]


def test_the_longest_waiting_goes_first_and_the_budget_holds():
    desk = Desk(max_batch_tokens=8)
    for number, peer in enumerate((A, B, b"c")):
        desk.tell(HELLO, peer)
        desk.now = float(number)
        desk.tell(opening(number, (1, 2, 3, 4), terms=PLAIN), peer)
    assert [len(row.tokens) for row in desk.batch().rows] == [4, 4]
    assert [len(row.tokens) for row in desk.batch().rows] == [4]
    assert desk.service.stepping.next(desk.now) == Wait(None)


def test_a_refusal_for_lack_of_room_is_retryable_and_a_closed_session_makes_room():
    desk = Desk(max_sessions=1)
    desk.tell(HELLO)
    desk.tell(opening(1))
    (busy,) = desk.tell(opening(2))
    assert (busy.code, busy.retryable, busy.session) == ("busy", True, 2)
    desk.tell(Close(1, SECRET))
    assert desk.tell(opening(2)) == [Admitted(2)]


def test_a_session_closed_in_the_middle_of_a_batch_gives_its_slot_back():
    desk = Desk(max_sessions=1)
    desk.tell(HELLO)
    desk.tell(opening(1))
    batch = desk.batch()
    desk.tell(Close(1, SECRET))
    (step,) = [step for step in desk.engine.run(batch.rows) if step.final]
    desk.service.stepping.commit(batch, step.choices, 0.0)
    assert desk.tell(opening(2)) == [Admitted(2)]
    assert len(desk.turn()) == 1


def test_a_session_closed_in_flight_keeps_its_slot_and_a_new_one_waits():
    """Other answers are unaffected when a device leaves and another comes during a batch."""
    desk = Desk(max_sessions=2)
    desk.tell(HELLO)
    desk.tell(HELLO, B)
    desk.tell(opening(1, terms=PLAIN), A)
    desk.tell(opening(2, terms=PLAIN), B)
    batch = desk.batch()
    steps = desk.engine.run(batch.rows)
    next(steps)
    desk.tell(Close(1, SECRET))
    (busy,) = desk.tell(opening(3))
    assert (busy.code, busy.retryable) == ("busy", True)
    *_, last = steps
    sent = desk.service.stepping.commit(batch, last.choices, 0.0)
    assert [message.session for to, message in sent if to == B] == [2]
    assert desk.tell(opening(3)) == [Admitted(3)]
    assert desk.service.sessions.active == 2


def test_a_target_that_overflows_ends_that_session_alone(desk):
    desk.tell(HELLO, B)
    desk.tell(opening(1, sampling=Sampling(1.0)))
    desk.tell(opening(2, sampling=Sampling(1.0)), B)
    batch = desk.batch()
    *_, last = desk.engine.run(batch.rows)
    for values in (last.choices[0].logits, last.choices[0].top_logits):
        values[:] = np.nan
    sent = dict(desk.service.stepping.commit(batch, last.choices, 0.0))
    assert sent[A].code == "internal"
    assert "not finite" in sent[A].message
    assert len(sent[B].tokens) == 1
    assert desk.service.sessions.active == 1


def test_a_device_that_only_reads_stays_alive_by_pinging(desk):
    desk.tell(opening(1, terms=PLAIN))
    desk.now = 500.0
    desk.tell(Ping(1))
    desk.now = 520.0
    assert desk.service.sessions.expire(desk.now) == []
    desk.now = 5000.0
    assert desk.service.sessions.expire(desk.now) == [1]


def test_silent_sessions_are_closed_and_finished_ones_can_still_be_asked():
    desk = Desk(idle_timeout=10.0)
    desk.tell(HELLO)
    desk.tell(opening(1, max_tokens=1))
    desk.turn()
    desk.tell(opening(2))
    assert desk.service.sessions.active == 1
    assert desk.tell(Resume(1, SECRET, 3))[0].finish == "length"
    desk.now = 20.0
    assert sorted(desk.service.sessions.expire(desk.now)) == [1, 2]
    assert desk.service.sessions.active == 0


def test_draining_refuses_new_sessions_and_finishes_old_ones(desk):
    desk.tell(opening(1, terms=PLAIN, max_tokens=3))
    assert desk.service.drain() == [(A, Drain())]
    assert desk.tell(opening(2))[0].retryable
    for _ in range(3):
        desk.turn()
    assert desk.service.sessions.active == 0


def test_a_failing_target_ends_its_sessions_with_an_error(desk):
    desk.tell(opening(1))
    batch = desk.batch()
    ((peer, error),) = desk.service.stepping.abandon(batch, "no memory", 0.0)
    assert (peer, error.code, error.session) == (A, "internal", 1)
    assert desk.service.sessions.active == 0
    assert desk.tell(Resume(1, SECRET, 3))[0].code == "session"


def test_garbage_from_one_device_never_touches_anothers_text():
    def written(noise):
        desk = Desk()
        desk.tell(HELLO, B)
        desk.tell(opening(7, terms=PLAIN), B)
        chance = random.Random(3)
        tokens = []
        while desk.service.sessions.active:
            if noise:
                packet = garbage(chance)
                for to, reply in desk.service.receive(A, packet, desk.now):
                    assert to == A
                    assert not isinstance(reply, Verdict)
            tokens += [t for to, m in desk.turn() if to == B for t in m.tokens]
        return tokens

    assert written(noise=True) == written(noise=False) == text((1, 2, 3))[3:]


def garbage(chance):
    """Packets that are no message, or messages about a session that is not the sender's."""
    message = chance.choice(
        [Draft(8, 1, 0, 3, [1]), Resume(8, SECRET, 2), opening(9), Close(9, SECRET), Ping(1)]
    )
    frames = pack(message)
    kind = chance.randrange(4)
    if kind == 0:
        return [chance.randbytes(chance.randrange(40))]
    if kind == 1:
        return [frames[0][: chance.randrange(len(frames[0]))], *frames[1:]]
    if kind == 2:
        return [*frames, b"x" * chance.randrange(100)]
    return [msgspec.msgpack.encode([chance.choice(["verdict", "welcome", "error", "x"]), 1])]
