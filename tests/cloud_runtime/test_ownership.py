"""A session belongs to the device that opened it: what others say about it has no effect."""

import pytest

from cloud_runtime.server import CloudLoop
from cloud_runtime.service import Identity, Service
from edgespec.config import CloudSettings
from edgespec.loopback import LoopbackHub
from edgespec.protocol import (
    VERSION,
    Close,
    Draft,
    Error,
    Hello,
    Open,
    Resume,
    Serve,
    Terms,
    Verdict,
    pack,
)
from edgespec.sampling import Sampling
from engines.toy import ToyEngine

SECRET, GUESS = bytes(range(16)), bytes(16)
PROMPT = [5, 6, 7]
VICTIM, OTHER = b"victim", b"attacker"
ONE_KEY, OTHER_KEY = b"1" * 40, b"2" * 40


class Cloud:
    def __init__(self, key=b""):
        self.service = Service(Identity("target", "tokenizer", ()), ToyEngine(), CloudSettings())
        for peer in (VICTIM, OTHER):
            self.tell(peer, Hello(VERSION, "target", "tokenizer", peer.decode()))
        self.tell(VICTIM, opening(SECRET), key)

    def tell(self, peer, message, key=b""):
        return [m for _, m in self.service.receive(peer, pack(message), 0.0, key)]

    @property
    def session(self):
        return next(iter(self.service.sessions))


def opening(secret, tokens=PROMPT, session=9):
    return Open(session, secret, len(PROMPT), 20, Sampling(), [], Terms(), list(tokens))


ATTACKS = [
    Resume(9, GUESS, 0),
    Close(9, GUESS),
    Serve(9, GUESS, Terms(drafting=False)),
    opening(GUESS),
    opening(GUESS, [*PROMPT, 1, 2]),
    opening(GUESS, [1, 1, 1]),
    Draft(9, 1, 0, 3, [1, 2]),
]


@pytest.mark.parametrize("key", [b"", ONE_KEY], ids=["secret", "key"])
@pytest.mark.parametrize("attack", ATTACKS, ids=lambda m: type(m).__name__)
def test_another_peer_learns_and_changes_nothing(attack, key):
    cloud = Cloud(key)
    session = cloud.session
    replies = cloud.tell(OTHER, attack, OTHER_KEY if key else b"")
    assert not any(isinstance(reply, Verdict) for reply in replies)
    assert all(isinstance(reply, Error) for reply in replies)
    assert cloud.session is session
    assert session.connection.peer == VICTIM
    assert session.state.tokens == PROMPT
    assert session.terms == Terms()
    assert session.best_path() is None


def test_a_stolen_secret_does_not_help_against_a_key():
    cloud = Cloud(ONE_KEY)
    for key in (b"", OTHER_KEY):
        (reply,) = cloud.tell(OTHER, Resume(9, SECRET, 0), key)
        assert isinstance(reply, Error)
    assert cloud.session.connection.peer == VICTIM


@pytest.mark.parametrize("key", [b"", ONE_KEY], ids=["secret", "key"])
def test_the_owner_goes_on_over_another_connection(key):
    cloud = Cloud(key)
    cloud.tell(b"again", Hello(VERSION, "target", "tokenizer", "victim"), key)
    if not key:  # a draft has no secret: it counts once the session was resumed
        (reply,) = cloud.tell(b"again", Draft(9, 1, 0, 3, [1, 2]), key)
        assert isinstance(reply, Error) and reply.code == "session"
    (reply,) = cloud.tell(b"again", Resume(9, SECRET, 0), key)
    assert isinstance(reply, Verdict) and reply.tokens == PROMPT
    cloud.tell(b"again", Draft(9, 1, 0, 3, [1, 2]), key)
    assert cloud.session.best_path() is not None
    cloud.tell(b"again", Close(9, SECRET), key)
    assert not len(cloud.service.sessions)


class KeyedHub(LoopbackHub):
    """Links that have a key until a reply does not reach them, as those of `RouterHub`."""

    def __init__(self, revoked=()):
        super().__init__()
        self.revoked, self.keys = set(revoked), {VICTIM: ONE_KEY}

    def send(self, peer, message):
        self.keys.pop(peer, None)
        return "gone"

    def owner(self, peer):
        return self.keys.get(peer, b"")

    def take_revoked(self):
        self.keys.clear()
        return self.revoked


def opened_by_a_device_that_vanishes(hub):
    engine, settings = ToyEngine(), CloudSettings()
    service = Service(Identity("target", "tokenizer", ()), engine, settings)
    for message in (Hello(VERSION, "target", "tokenizer", "victim"), opening(SECRET)):
        hub.inbox.append((VICTIM, pack(message)))
    CloudLoop(hub, service, engine, settings).turn(0.0)
    return [session.owner.key for session in service.sessions]


def test_a_device_that_vanishes_after_its_open_owns_the_session():
    assert opened_by_a_device_that_vanishes(KeyedHub()) == [ONE_KEY]


def test_packets_that_wait_when_their_key_is_removed_open_nothing():
    assert opened_by_a_device_that_vanishes(KeyedHub({ONE_KEY})) == []


def test_the_sessions_of_a_removed_key_end():
    cloud = Cloud(ONE_KEY)
    cloud.tell(OTHER, opening(SECRET, session=10), OTHER_KEY)
    cloud.service.sessions.revoke({ONE_KEY}, 1.0)
    assert [session.id for session in cloud.service.sessions] == [10]
