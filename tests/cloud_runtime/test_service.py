"""The cloud's decisions as a table: what arrives, what is answered, what runs next."""

import random

import msgspec
import numpy as np
import pytest

from cloud_runtime.service import Identity, Service
from edgespec.config import CloudSettings
from edgespec.protocol import (
    VERSION,
    Close,
    Draft,
    Drain,
    Hello,
    Hint,
    Open,
    Ping,
    Pong,
    Resume,
    Verdict,
    Welcome,
    pack,
)
from edgespec.sampling import Sampling
from engines.toy import ToyEngine

HELLO = Hello(VERSION, "t", "k", "robot")
A, B = b"a", b"b"


class Desk:
    """A service, its engine, and a clock that the test turns."""

    def __init__(self, **settings):
        self.engine = ToyEngine(context=200)
        self.service = Service(Identity("t", "k", (1, 2)), self.engine, CloudSettings(**settings))
        self.now = 0.0

    def tell(self, message, peer=A):
        replies = self.service.receive(peer, pack(message), self.now)
        assert all(to == peer for to, _ in replies)
        return [reply for _, reply in replies]

    def turn(self):
        """One batch; what it sends, by peer."""
        batch = self.service.next_batch()
        if batch is None:
            return []
        sent = []
        for step in self.engine.run(batch.rows):
            if step.final:
                sent += self.service.commit(batch, step.choices, self.now)
            else:
                sent += self.service.hints(batch, step.layer, step.choices)
        return sent


def opening(session=1, prompt=(1, 2, 3), **changes):
    values = {
        "session": session,
        "prompt_length": len(prompt),
        "max_tokens": 20,
        "sampling": Sampling(),
        "end_ids": [],
        "drafting": True,
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


def test_welcome_says_what_the_device_must_know():
    (welcome,) = Desk().tell(HELLO)
    assert (welcome.context, welcome.exits, welcome.max_draft) == (200, [1, 2], 32)


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
        (Hint(1, 1, 1, 1, []), "does not send Hint"),
    ],
)
def test_what_cannot_be_served_is_refused_and_leaves_nothing(desk, message, words):
    (error,) = desk.tell(message)
    assert error.code == "invalid"
    assert words in error.message
    assert desk.service.active == 0
    assert desk.turn() == []


def test_a_round(desk):
    assert desk.tell(opening()) == []
    ((_, first),) = desk.turn()
    assert (first.round, first.base, first.accepted, len(first.tokens)) == (0, 3, 0, 1)
    assert desk.turn() == []
    assert desk.tell(Draft(1, 1, 4, [7, 7])) == []
    sent = [message for _, message in desk.turn()]
    assert [type(message) for message in sent] == [Hint, Hint, Verdict]
    assert [(hint.layer, hint.base, len(hint.tokens)) for hint in sent[:2]] == [
        (1, 4, 3),
        (2, 4, 3),
    ]
    assert (sent[2].round, sent[2].base) == (1, 4)
    assert len(sent[2].tokens) == sent[2].accepted + 1


def test_repeated_stale_and_early_drafts(desk):
    desk.tell(opening())
    desk.turn()
    desk.tell(Draft(1, 1, 4, [7, 7]))
    assert desk.tell(Draft(1, 1, 4, [9, 9])) == []
    ((_, verdict),) = [sent for sent in desk.turn() if isinstance(sent[1], Verdict)]
    assert desk.tell(Draft(1, 1, 4, [7, 7])) == [verdict]
    (standing,) = desk.tell(Draft(1, 2, 3, [7]))
    assert (standing.base, len(standing.tokens)) == (3, 1 + len(verdict.tokens))
    (error,) = desk.tell(Draft(1, 2, 99, [7]))
    assert error.code == "invalid"
    assert desk.turn() == []


def test_ids_that_the_target_lacks_end_a_draft(desk):
    desk.tell(opening())
    desk.turn()
    desk.tell(Draft(1, 1, 4, [7, 50, 7]))
    batch = desk.service.next_batch()
    assert list(batch.rows[0].tokens)[1:] == [7]


def test_resume_tells_everything_since(desk):
    desk.tell(opening(drafting=False))
    written = [message.tokens[0] for _ in range(5) for _, message in desk.turn()]
    (verdict,) = desk.tell(Resume(1, 5))
    assert (verdict.base, verdict.tokens) == (5, written[2:])
    assert desk.tell(Resume(2, 5))[0].code == "session"
    assert desk.tell(Resume(1, 99))[0].code == "session"


def test_an_open_that_is_repeated_resumes_and_one_that_differs_is_refused(desk):
    desk.tell(opening(drafting=False))
    (first,) = [message.tokens[0] for _, message in desk.turn()]
    (verdict,) = desk.tell(opening(drafting=False))
    assert verdict.tokens == [first]
    assert desk.tell(opening(prompt=(9, 9)))[0].code == "invalid"
    assert desk.service.active == 1


def test_a_long_prompt_runs_in_chunks_beside_others():
    desk = Desk(prefill_chunk=16)
    desk.tell(HELLO)
    desk.tell(HELLO, B)
    desk.tell(opening(1, range(50)))
    desk.tell(opening(2, (1, 2), drafting=False), B)
    peers = []
    for _ in range(4):
        peers.append({to for to, _ in desk.turn()})
    assert peers == [{B}, {B}, {B}, {A, B}]


def test_the_longest_waiting_goes_first_and_the_budget_holds():
    desk = Desk(max_batch_tokens=8, max_sessions=3)
    for number, peer in enumerate((A, B, b"c")):
        desk.tell(HELLO, peer)
        desk.now = float(number)
        desk.tell(opening(number, (1, 2, 3, 4), drafting=False), peer)
    assert [len(row.tokens) for row in desk.service.next_batch().rows] == [4, 4]
    assert [len(row.tokens) for row in desk.service.next_batch().rows] == [4]
    assert desk.service.next_batch() is None


def test_full_house_is_retryable_and_a_closed_session_makes_room():
    desk = Desk(max_sessions=1)
    desk.tell(HELLO)
    desk.tell(opening(1))
    (busy,) = desk.tell(opening(2))
    assert (busy.code, busy.retryable, busy.session) == ("busy", True, 2)
    desk.tell(Close(1))
    assert desk.tell(opening(2)) == []


def test_a_session_closed_in_the_middle_of_a_batch_gives_its_slot_back():
    desk = Desk(max_sessions=1)
    desk.tell(HELLO)
    desk.tell(opening(1))
    batch = desk.service.next_batch()
    desk.tell(Close(1))
    (step,) = [step for step in desk.engine.run(batch.rows) if step.final]
    desk.service.commit(batch, step.choices, 0.0)
    assert desk.tell(opening(2)) == []
    assert len(desk.turn()) == 1


def test_a_session_closed_in_flight_keeps_its_slot_and_a_new_one_waits():
    """Nobody else's answer suffers when a device leaves and another comes during a batch."""
    desk = Desk(max_sessions=2)
    desk.tell(HELLO)
    desk.tell(HELLO, B)
    desk.tell(opening(1, drafting=False), A)
    desk.tell(opening(2, drafting=False), B)
    batch = desk.service.next_batch()
    steps = desk.engine.run(batch.rows)
    next(steps)
    desk.tell(Close(1))
    (busy,) = desk.tell(opening(3))
    assert (busy.code, busy.retryable) == ("busy", True)
    *_, last = steps
    sent = desk.service.commit(batch, last.choices, 0.0)
    assert [message.session for to, message in sent if to == B] == [2]
    assert desk.tell(opening(3)) == []
    assert desk.service.active == 2


def test_a_target_that_overflows_ends_that_session_alone(desk):
    desk.tell(HELLO, B)
    desk.tell(opening(1, sampling=Sampling(1.0)))
    desk.tell(opening(2, sampling=Sampling(1.0)), B)
    batch = desk.service.next_batch()
    *_, last = desk.engine.run(batch.rows)
    for values in (last.choices[0].logits, last.choices[0].top_logits):
        values[:] = np.nan
    sent = dict(desk.service.commit(batch, last.choices, 0.0))
    assert sent[A].code == "internal"
    assert "not finite" in sent[A].message
    assert len(sent[B].tokens) == 1
    assert desk.service.active == 1


def test_a_device_that_only_reads_stays_alive_by_pinging(desk):
    desk.tell(opening(1, drafting=False))
    desk.now = 500.0
    desk.tell(Ping(1))
    desk.now = 520.0
    assert desk.service.expire(desk.now) == []
    desk.now = 5000.0
    assert desk.service.expire(desk.now) == [1]


def test_silent_sessions_are_closed_and_finished_ones_can_still_be_asked():
    desk = Desk(idle_timeout=10.0)
    desk.tell(HELLO)
    desk.tell(opening(1, max_tokens=1))
    desk.turn()
    desk.tell(opening(2))
    assert desk.service.active == 1
    assert desk.tell(Resume(1, 3))[0].finish == "length"
    desk.now = 20.0
    assert sorted(desk.service.expire(desk.now)) == [1, 2]
    assert desk.service.active == 0


def test_draining_refuses_new_sessions_and_finishes_old_ones(desk):
    desk.tell(opening(1, drafting=False, max_tokens=3))
    assert desk.service.drain() == [(A, Drain())]
    assert desk.tell(opening(2))[0].retryable
    for _ in range(3):
        desk.turn()
    assert desk.service.active == 0


def test_a_failing_target_ends_its_sessions_with_an_error(desk):
    desk.tell(opening(1))
    batch = desk.service.next_batch()
    ((peer, error),) = desk.service.abandon(batch, "no memory")
    assert (peer, error.code, error.session) == (A, "internal", 1)
    assert desk.service.active == 0
    assert desk.tell(Resume(1, 3))[0].code == "session"


def test_garbage_from_one_device_never_touches_anothers_text():
    def text(noise):
        desk = Desk()
        desk.tell(HELLO, B)
        desk.tell(opening(7, drafting=False), B)
        chance = random.Random(3)
        tokens = []
        while desk.service.active:
            if noise:
                packet = garbage(chance)
                for to, reply in desk.service.receive(A, packet, desk.now):
                    assert to == A
                    assert not isinstance(reply, Verdict)
            tokens += [t for to, m in desk.turn() if to == B for t in m.tokens]
        return tokens

    assert text(noise=True) == text(noise=False)
    assert len(text(noise=True)) == 20


def garbage(chance):
    """Packets that are no message, or messages about a session that is not the sender's."""
    message = chance.choice([Draft(8, 1, 3, [1]), Resume(8, 2), opening(9), Close(9), Ping(1)])
    frames = pack(message)
    kind = chance.randrange(4)
    if kind == 0:
        return [chance.randbytes(chance.randrange(40))]
    if kind == 1:
        return [frames[0][: chance.randrange(len(frames[0]))], *frames[1:]]
    if kind == 2:
        return [*frames, b"x" * chance.randrange(100)]
    return [msgspec.msgpack.encode([chance.choice(["verdict", "welcome", "error", "x"]), 1])]
