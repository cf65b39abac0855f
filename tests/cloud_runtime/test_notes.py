"""Log lines about devices: device, event and reason, and not one line a packet."""

import logging

import pytest

from cloud_runtime.service import Identity, Service
from edgespec.config import CloudSettings
from edgespec.policies import LinkLimits
from edgespec.protocol import VERSION, Close, Error, Hello, Open, Ping, Pong, Resume, Terms, pack
from edgespec.sampling import Sampling
from edgespec.session import alias
from engines.toy import ToyEngine

SECRET = bytes(16)

HELLO = Hello(VERSION, "t", "k", "robot", "cpu-int8", "a board")
A = b"a"


@pytest.fixture
def service():
    settings = CloudSettings(kv_memory=1 << 20, max_sessions=1)
    return Service(Identity("t", "k", ()), ToyEngine(), settings)


def tell(service, message, now=0.0):
    return [reply for _, reply in service.receive(A, pack(message), now)]


def opening(session):
    return Open(session, SECRET, 3, 20, Sampling(), [], Terms(drafting=False), [1, 2, 3])


def notes(service):
    return [(note.level, note.sentence, note.fields.get("event")) for note in service.notes()]


def step(service, now):
    batch = service.stepping.next(now)
    for each in service.stepping._engine.run(batch.rows):
        if each.final:
            service.stepping.commit(batch, each.choices, now)


def test_a_device_is_announced_once(service):
    tell(service, HELLO)
    tell(service, HELLO)
    words = "device robot is here (drafter: cpu-int8; hardware: a board)"
    assert notes(service) == [(logging.INFO, words, "device")]
    assert notes(service) == []


def test_one_that_does_not_fit_is_named_with_the_reason(service):
    for now in (0.0, 1.0, LinkLimits().repeat_s):
        assert tell(service, Hello(VERSION, "other", "k", "robot"), now)[0].code == "bundle"
    said = notes(service)
    assert [level for level, _, _ in said] == [logging.WARNING] * 2
    assert said[0][1].startswith("device robot is refused (bundle): its target differs")
    assert service.tally.refused == {"bundle": 3}


def test_the_end_of_a_session_has_its_figures(service):
    tell(service, HELLO)
    tell(service, opening(0x1F))
    for number in range(3):
        step(service, 1.0 + number)
    tell(service, Close(0x1F, SECRET), 5.0)
    note = service.notes()[-1]
    assert note.sentence == (
        f"session {alias(0x1F)} of robot ended (closed): 3 tokens in 5.0 s, 0 of them drafted there"
    )
    assert note.fields == {
        "event": "ended", "device": "robot", "peer": "61",
        "session": alias(0x1F), "reason": "closed",
        "tokens": 3, "seconds": 5.0, "verified": 0, "accepted": 0,
    }  # fmt: skip
    assert service.tally.finished == {"closed": 1}


def test_a_refusal_for_lack_of_room_is_logged_but_is_no_warning(service):
    tell(service, HELLO)
    tell(service, opening(1))
    tell(service, opening(2))
    *_, (level, words, event) = notes(service)
    assert (level, event) == (logging.INFO, "refused") and "busy" in words
    tell(service, Resume(9, SECRET, 3))
    assert notes(service) == [], "it only has to open its session again"


def test_what_is_over_the_budget_is_dropped_unseen(service):
    tell(service, HELLO)
    replies = [tell(service, Ping(1)) for _ in range(int(LinkLimits().burst_packets) + 50)]
    assert [len(reply) for reply in replies].count(0) == 51
    assert service.tally.dropped == {"flood": 51}
    assert [event for _, _, event in notes(service)] == ["device", "flood"]
    assert isinstance(tell(service, Ping(1), 1.0)[0], Pong)


def test_a_device_that_nothing_reaches_rests_until_it_asks(service):
    tell(service, HELLO)
    tell(service, opening(1))
    step(service, 1.0)
    (session,) = service.sessions
    service.lost(A, "unread", 1.0)
    assert session.connection.away and not session.ready
    service.receive(A, [b"\xff"], 1.0)
    assert session.connection.away, "garbage is no question"
    tell(service, Ping(1), 2.0)
    assert session.ready
    service.lost(A, "unread", 2.0)
    assert [event for _, _, event in notes(service)] == ["device", "unread", "garbage"]
    assert session.connection.away


def test_what_is_handed_back_can_go_on_elsewhere(service):
    tell(service, HELLO)
    tell(service, opening(1))
    ((peer, error),) = service.sessions.hand_back(1.0)
    assert peer == A and isinstance(error, Error)
    assert (error.code, error.session, error.retryable) == ("drained", 1, True)
    assert error.retry_ms > 0
    assert service.sessions.unfinished == [] and service.sessions.active == 0
    assert service.tally.finished == {"drained": 1}
