"""The ledger of slots: the order of evictions, turns, waiting, shared prefixes."""

import gc
import tracemalloc
from itertools import pairwise
from types import SimpleNamespace

import pytest

from cloud_runtime.memory.eviction import CacheEntry, eviction_rank, victims
from cloud_runtime.memory.ledger import Memory
from cloud_runtime.memory.limits import share_of
from cloud_runtime.memory.prefixes import packed
from cloud_runtime.service import Identity, Service
from cloud_runtime.sessions import CloudSession, Connection
from edgespec.config import CloudSettings
from edgespec.errors import EngineError, UsageError
from edgespec.policies import EvictionPolicy
from edgespec.protocol import VERSION, Admitted, Close, Hello, Open, Terms, Verdict, pack
from edgespec.sampling import Sampling
from edgespec.session import Session
from engines.alone import write_alone
from engines.base import Row, final_choices
from engines.toy import ToyEngine

SECRET = bytes(16)

SLOT = ToyEngine().slot_bytes(1)
POLICY = EvictionPolicy()
NOW = 100.0


def new_session(number=1, prompt=range(20), answer=20, *, now=NOW, **terms):
    state = Session(list(prompt), len(prompt), answer, frozenset())
    connection = Connection(b"a", now)
    return CloudSession(number, state, Sampling(), Terms(**terms), connection, now)


def entry(**about):
    """Of a session that runs and has had its turn, unless told otherwise."""
    own = {"ready": True, "ready_since": NOW, "due": NOW}
    own |= {key: about.pop(key) for key in list(about) if key in own}
    own["progress"] = SimpleNamespace(running=about.pop("running", False))
    heard_at, away = about.pop("heard_at", NOW), about.pop("away", False)
    own["connection"] = SimpleNamespace(heard_at=heard_at, away=away)
    values = {
        "slot": 0, "size": 1, "tokens": b"", "session": SimpleNamespace(**own),
        "since": NOW - 9, "decoding_since": NOW - 8,
    }  # fmt: skip
    return CacheEntry(**{**values, **about})


@pytest.mark.parametrize(
    ("one", "preempt", "rank"),
    [
        (entry(session=None), False, (1, NOW - 9)),
        (entry(session=None, references=1), True, None),
        (entry(heard_at=NOW - POLICY.gone_s - 1), False, (2, NOW - POLICY.gone_s - 1)),
        (entry(away=True), False, (2, NOW)),
        (entry(away=True, running=True), True, None),
        (
            entry(ready=False, ready_since=NOW - POLICY.idle_s - 1),
            False,
            (3, NOW - POLICY.idle_s - 1),
        ),
        (entry(ready=False, ready_since=NOW - POLICY.idle_s / 2), False, None),
        (entry(ready=False, ready_since=NOW - POLICY.idle_s / 2), True, (4, -NOW)),
        (entry(), False, None),
        (entry(due=NOW + 3), True, (4, -NOW - 3)),
        (entry(running=True), True, None),
        (entry(references=1), True, None),
        (entry(decoding_since=None), True, None),
        (entry(decoding_since=NOW - POLICY.turn_s / 2, since=NOW - POLICY.turn_s / 2), True, None),
        (
            entry(decoding_since=NOW - 8, since=NOW - 30),
            True,
            None,
        ),  # its prefill took longer
    ],
)
def test_places_in_the_order(one, preempt, rank):
    assert eviction_rank(one, NOW, POLICY, preempt=preempt) == rank


ORDER = [
    entry(session=None, since=NOW - 7),
    entry(session=None, since=NOW - 3),
    entry(heard_at=NOW - 20),
    entry(away=True),
    entry(ready=False, ready_since=NOW - 9),
    entry(ready=False, ready_since=NOW - 3),
    entry(due=NOW + 2),
    entry(due=NOW - 2),
    entry(running=True),
    entry(session=None, references=1),
]


@pytest.mark.parametrize("size", range(11))
@pytest.mark.parametrize("preempt", [False, True])
def test_as_many_go_as_are_needed_in_that_order_or_none(size, preempt):
    most = 8 if preempt else 6
    expected = ORDER[:size] if size <= most else None
    assert victims(reversed(ORDER), size, 0, NOW, POLICY, preempt=preempt) == expected
    assert victims(reversed(ORDER), 0, size, NOW, POLICY, preempt=preempt) == expected


class Bank:
    """A memory over a toy, and its sessions, which it steps."""

    def __init__(self, slots, sessions=(), engine=None):
        self.engine = engine or ToyEngine()
        self.memory = Memory(self.engine, slots * SLOT)
        self.sessions = list(sessions)
        self.now = NOW

    def lend(self, seconds=0.0):
        self.now += seconds
        for one in self.sessions:
            one.connection.heard_at = self.now
        return [one.id for one in self.memory.lend(self.sessions, 4, self.now)]

    def run(self, one, tokens=1000):
        """The next tokens of a session's text that are not cached; one more where it is all."""
        ids = one.state.tokens[one.cache.length :][:tokens]
        (choice,) = final_choices(self.engine, [Row(one.cache.slot, one.cache.length, ids)])
        one.cache.advance(one.cache.length + len(ids))
        if one.cache.length == one.length:
            one.state.commit([int(choice.argmax[0])])
            one.progress.ended_at = self.now

    def leave(self, one, **how):
        self.memory.leave(one, self.now, **how)
        self.sessions.remove(one)


def test_first_come_first_served_and_nothing_beyond_the_limit():
    bank = Bank(2, [new_session(n, [n] * 20) for n in (1, 2, 3)])
    assert bank.lend() == [1, 2]
    assert bank.memory.session_bytes == bank.memory.limit == 2 * SLOT
    assert bank.memory.waiting == 1
    bank.leave(bank.sessions[0], keep=False)
    assert bank.lend() == [2, 3]
    assert bank.memory.waiting == 0


class FullEngine(ToyEngine):
    def copy(self, source, target, start, end):
        raise EngineError("the device's memory is full")


def test_a_beginning_that_cannot_be_copied_is_read(caplog):
    first, second = new_session(1, [5] * 100), new_session(2, [5] * 90 + [7])
    bank = Bank(4, [first], FullEngine())
    bank.lend()
    bank.run(first)
    bank.sessions.append(second)
    assert bank.lend() == [1, 2]
    assert second.cache.length == 0 and bank.memory.counts.prefix_hits == 0
    assert "90 tokens are read again: the device's memory is full" in caplog.text
    bank.run(second)
    assert second.state.answer == write_alone(ToyEngine(), second.state.tokens[:91], 1, Sampling())


def test_who_waits_takes_the_slot_of_one_that_has_had_its_turn_and_both_get_on():
    first, second = new_session(1, [1] * 20, 60), new_session(2, [2] * 20, 60)
    bank = Bank(1, [first, second])
    turns = []
    for _ in range(200):
        (session,) = bank.lend(0.1)
        one = first if session == 1 else second
        bank.run(one)
        if not turns or turns[-1][0] != session:
            turns.append((session, bank.now))
        if one.state.finish:
            bank.leave(one)
        if not bank.sessions:
            break
    reference = ToyEngine()
    for one in (first, second):
        assert one.state.answer == write_alone(reference, one.state.tokens[:20], 60, Sampling())
    lengths = [b[1] - a[1] for a, b in pairwise(turns)]
    assert [session for session, _ in turns[:4]] == [1, 2, 1, 2]
    assert lengths[:3] == pytest.approx([POLICY.turn_s] * 3, abs=0.25)
    assert bank.memory.counts.evictions == len(turns) - 2, "one left by itself"
    assert bank.memory.counts.read_again > 3 * 20


def test_a_session_that_reads_its_text_is_let_finish_however_long_that_takes():
    first, second = new_session(1, [1] * 150, 100), new_session(2, [2] * 20)
    bank = Bank(1, [first, second])
    for _ in range(15):
        assert bank.lend(3.0) == [1]
        bank.run(first, 10)
    assert first.cache.length == 150
    began = bank.now
    while bank.lend(1.0) == [1]:
        bank.run(first)
    assert 42 <= bank.now - began <= 48, "it writes for as long as it has read"


def test_growing_is_asked_for_and_may_have_to_wait():
    first, second = new_session(1, [1] * 240, 100), new_session(2, [2] * 20)
    bank = Bank(2, [first, second])
    assert bank.lend() == [1, 2]
    for _ in range(13):
        bank.run(first)
    assert bank.lend() == [2], "it needs two slots' bytes, and there is one"
    assert first.cache.slot is not None
    bank.leave(second)
    assert bank.lend() == [1]
    assert bank.memory.session_bytes == 2 * SLOT and not bank.memory.kept_bytes


def test_two_that_need_what_the_other_has_both_finish():
    pair = [new_session(n, [n] * 240, 60) for n in (1, 2)]
    bank = Bank(3, pair)
    for _ in range(2000):
        for session in bank.lend(0.05):
            one = pair[session - 1]
            bank.run(one, 64)
            if one.state.finish:
                bank.leave(one)
        if not bank.sessions:
            break
    reference = ToyEngine()
    for one in pair:
        assert one.state.answer == write_alone(reference, one.state.tokens[:240], 60, Sampling())


def test_who_waits_longest_is_not_overtaken_by_those_that_need_less():
    large, small = new_session(1, [1] * 300), new_session(2, [2] * 20)
    bank = Bank(2, [small])
    assert bank.lend() == [2]
    bank.run(small)
    bank.sessions = [small, large, new_session(3, [3] * 20)]
    assert sorted(bank.lend()) == [2, 3]
    bank.sessions.append(new_session(4, [4] * 20))
    bank.leave(bank.sessions[2], keep=False)
    assert 4 not in bank.lend(POLICY.patience_s + 0.1)
    bank.lend(POLICY.turn_s)
    assert bank.lend(0.1) == [1]


def test_a_kept_text_is_copied_or_goes_on_in_its_own_slot():
    bank = Bank(4)
    words = list(range(30))
    first = new_session(1, words)
    bank.sessions = [first]
    bank.lend()
    bank.run(first)
    bank.leave(first)
    assert (bank.memory.session_bytes, bank.memory.kept_bytes) == (0, SLOT)
    other, follow = new_session(2, [*words[:12], 40, 41]), new_session(3, [*words, 42, 43])
    bank.sessions = [other]
    bank.lend()
    assert (other.cache.length, bank.memory.counts.prefix_hits) == (12, 12)
    assert bank.memory.kept_bytes == SLOT
    bank.sessions = [other, follow]
    bank.lend()
    assert follow.cache.length == 30
    assert bank.memory.kept_bytes == 0, "it goes on where the kept text ended"
    counts = bank.memory.counts
    assert (counts.prefix_queries, counts.prefix_hits) == (30 + 14 + 32, 12 + 30)
    reference = ToyEngine()
    for one in (other, follow):
        prompt = list(one.state.tokens)
        bank.run(one)
        assert one.state.answer == write_alone(reference, prompt, 1, Sampling())


def test_the_last_token_is_always_run():
    bank = Bank(4, [new_session(1)])
    first = bank.sessions[0]
    bank.lend()
    bank.run(first)
    again = new_session(2)
    bank.sessions.append(again)
    bank.lend()
    assert again.cache.length == again.length - 1


def test_short_beginnings_are_not_worth_a_copy():
    bank = Bank(4, [new_session(1)])
    bank.lend()
    bank.run(bank.sessions[0])
    bank.sessions.append(new_session(2, [*range(7), *range(30, 40)]))
    bank.lend()
    assert bank.sessions[1].cache.length == 0


def test_those_that_begin_alike_wait_for_the_first_and_are_computed_once():
    words = list(range(32))
    group = [new_session(n, [*words, 40 + n, 3, n]) for n in range(8)]
    bank = Bank(20, group)
    assert bank.lend() == [0]
    bank.run(group[0], 16)
    assert bank.lend() == [0]
    assert bank.memory.waiting == 7
    bank.run(group[0], 16)
    assert sorted(bank.lend()) == list(range(8))
    assert [one.cache.length for one in group[1:]] == [32] * 7
    assert bank.memory.counts.prefix_hits == 7 * 32


@pytest.mark.parametrize("keep", [True, False])
def test_if_the_first_leaves_in_the_middle_the_next_goes_on_from_there(keep):
    words = list(range(40))
    group = [new_session(n, [*words, n, n]) for n in range(3)]
    bank = Bank(20, group)
    bank.lend()
    bank.run(group[0], 16)
    bank.lend()
    bank.leave(group[0], keep=keep)
    assert bank.lend() == [1]
    assert group[1].cache.length == (16 if keep else 0)
    bank.run(group[1])
    assert sorted(bank.lend()) == [1, 2]
    assert group[2].cache.length == 40


def test_the_one_waited_for_keeps_its_slot():
    first, second = new_session(1, range(30)), new_session(2, [*range(30), 1])
    bank = Bank(2, [first, second])
    bank.lend()
    bank.run(first, 10)
    bank.lend()
    for one in (first, second):
        one.connection.away = one is first  # its device has gone, which makes it the first to go
    (held,) = bank.memory._entries._entries.values()
    assert held.references == 1
    bank.sessions.append(new_session(3, [9] * 300))
    bank.memory.lend([second, bank.sessions[2]], 4, bank.now)
    assert held.references == 0, "its prefill does not go on, so no session waits for it"


def test_kept_texts_that_say_nothing_new_are_dropped():
    bank = Bank(9)
    for tokens in ([*range(20)], [*range(25)], [*range(22)], [*range(10), 40, 41]):
        one = new_session(len(tokens), tokens)
        bank.sessions = [one]
        bank.lend()
        bank.run(one)
        bank.leave(one)
    assert sorted(one.cached for one in bank.memory._entries._entries.values()) == [12, 25]
    assert sum(map(len, bank.memory._entries._prefixes.values())) == 2


def test_with_room_for_one_the_kept_text_itself_gives_its_beginning():
    bank = Bank(1, [new_session(1, range(30))])
    (first,) = bank.sessions
    bank.lend()
    bank.run(first)
    bank.leave(first)
    second = new_session(2, [*range(20), 40, 41, 42])
    bank.sessions = [second]
    assert bank.lend() == [2]
    assert second.cache.length == 20
    bank.run(second)
    reference = ToyEngine()
    assert second.state.answer == write_alone(reference, second.state.tokens[:23], 1, Sampling())


def test_no_more_texts_are_kept_than_the_engine_has_slots_for():
    bank = Bank(99, engine=ToyEngine(slots=3))
    for number in range(8):
        one = new_session(number, [number] * 10)
        bank.sessions = [one]
        assert bank.lend() == [number]
        bank.run(one)
        bank.leave(one)
    assert len(bank.memory._entries) == 3
    assert ToyEngine().slots > POLICY.kept_entries


def test_too_little_for_one_session_is_refused_with_a_sentence():
    with pytest.raises(UsageError, match="hold no session"):
        Memory(ToyEngine(), SLOT - 1)
    assert Memory(ToyEngine(), SLOT).context == 256
    assert Memory(ToyEngine(), 99 * SLOT).context == 512


def test_the_cloud_draft_gets_its_share():
    wide = SimpleNamespace(slot_bytes=lambda positions: 300)
    narrow = SimpleNamespace(slot_bytes=lambda positions: 100)
    assert share_of(4000, wide, None) == 0
    assert share_of(4000, wide, narrow) == 1000


class Desk:
    def __init__(self, **settings):
        self.engine = ToyEngine()
        self.service = Service(Identity("t", "k", ()), self.engine, CloudSettings(**settings))
        self.now = 0.0
        self.tell(Hello(VERSION, "t", "k", "x"))

    def tell(self, message, peer=b"a", key=b""):
        return [reply for _, reply in self.service.receive(peer, pack(message), self.now, key)]

    def open(self, session, prompt=(1, 2, 3), most=4, key=b""):
        terms = Terms(drafting=False)
        tokens = list(prompt)
        message = Open(session, SECRET, len(tokens), most, Sampling(), [], terms, tokens)
        (reply,) = self.tell(message, key=key)
        return reply

    def turn(self):
        batch = self.service.stepping.next(self.now)
        *_, last = self.engine.run(batch.rows)
        sent = self.service.stepping.commit(batch, last.choices, self.now)
        return [message for _, message in sent if isinstance(message, Verdict)]


def test_yes_later_or_no():
    desk = Desk(kv_memory=SLOT, max_sessions=12, sessions_per_device=12)
    refused = desk.open(99, most=300)
    assert (refused.code, refused.retryable) == ("invalid", False)
    assert "need 0.0 MB of KV cache, and the cloud has 0.0 MB in all" in refused.message
    assert desk.open(1) == Admitted(1)
    waits = [desk.open(session).wait_ms for session in range(2, 11)]
    # The one that runs and those ahead end at a rate of active / 5 s.
    assert waits == pytest.approx([5e3 * (n + 1) / n for n in range(1, 10)])
    desk.service.sessions._durations.ended(30.0)
    later = desk.open(11)
    assert (later.code, later.retryable, later.session) == ("busy", True, 11)
    assert later.retry_ms == pytest.approx(33e3)
    assert "try again in 33 s" in later.message


def test_all_sessions_open_is_later_too():
    desk = Desk(max_sessions=2, sessions_per_device=2)
    assert desk.open(1) == Admitted(1) and desk.open(2) == Admitted(2)
    later = desk.open(3)
    assert (later.code, later.retry_ms) == ("busy", 2500.0)


def test_an_hour_of_churn_leaves_nothing_behind():
    """20 000 short sessions, of which some are closed early."""
    desk = Desk(kv_memory=40 * SLOT)

    def churn(sessions):
        for number in sessions:
            desk.now += 0.18
            prompt = [*range(10), number % 50, number // 50 % 50, *range(number % 17)]
            desk.open(number, prompt, 2)
            desk.turn()
            if number % 3:
                desk.turn()
            desk.tell(Close(number, SECRET))
            if number % 100 == 0:
                desk.service.sessions.expire(desk.now)
                desk.service.notes()

    churn(range(1, 2000))
    sizes = _sizes(desk.service)
    tracemalloc.start()
    gc.collect()
    before = tracemalloc.get_traced_memory()[0]
    churn(range(2000, 4000))
    gc.collect()
    first = tracemalloc.get_traced_memory()[0] - before
    tracemalloc.stop()
    churn(range(4000, 20_000))
    assert first < 100_000
    assert _sizes(desk.service) <= sizes * 1.2
    assert desk.service.sessions.active == 0
    assert len(desk.service.memory._entries) <= 40
    assert desk.service.memory.counts.prefix_hits > 0


def _sizes(root):
    """Objects that can be reached from `root` through its attributes and containers."""
    seen, queue = set(), [root]
    while queue:
        one = queue.pop()
        if id(one) in seen or isinstance(one, (str, bytes, int, float, type)):
            continue
        seen.add(id(one))
        if isinstance(one, dict):
            queue += [*one.keys(), *one.values()]
        elif isinstance(one, (list, tuple, set, frozenset)):
            queue += one
        elif hasattr(one, "__dict__"):
            queue += one.__dict__.values()
    return len(seen)


def test_the_tokens_of_a_text_are_packed_as_they_are_kept():
    assert packed([1, 2]) == packed([1]) + packed([2])


@pytest.mark.parametrize(
    ("keys", "share", "hits"),
    [
        ((b"", b""), False, 19),
        ((b"1" * 40, b"1" * 40), False, 19),
        ((b"1" * 40, b"2" * 40), False, 0),
        ((b"1" * 40, b"2" * 40), True, 19),
    ],
    ids=["no keys", "one key", "two keys", "two keys that share"],
)
@pytest.mark.parametrize("ended", [True, False], ids=["kept", "running"])
def test_a_key_does_not_see_what_another_has_cached(keys, share, hits, ended):
    desk = Desk(share_prefixes=share)
    prompt = range(20)
    desk.open(1, prompt, most=40, key=keys[0])
    desk.turn()
    if ended:
        desk.tell(Close(1, SECRET), key=keys[0])
    desk.open(2, prompt, most=40, key=keys[1])
    desk.turn()
    assert desk.service.memory.counts.prefix_hits == hits
    assert desk.service.memory.counts.prefix_queries == 40
    desk.tell(Close(2, SECRET), key=keys[1])
    desk.tell(Close(1, SECRET), key=keys[0])
    assert desk.service.memory.session_bytes == 0
    assert len(desk.service.memory._entries._prefixes) == 1 + (keys[0] != keys[1] and not share)
