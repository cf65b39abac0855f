"""Quotas by device: sessions, bytes, drafted ids and tokens a day."""

import pytest

from cloud_runtime.quotas import Budget, Quota, Quotas, read_quotas
from cloud_runtime.service import Identity, Service
from edgespec.config import CloudSettings
from edgespec.errors import UsageError
from edgespec.policies import LinkLimits
from edgespec.protocol import (
    VERSION,
    Admitted,
    Close,
    Draft,
    Error,
    Hello,
    Open,
    Ping,
    Pong,
    Resume,
    Terms,
    pack,
)
from edgespec.sampling import Sampling
from engines.toy import ToyEngine

SECRET = bytes(16)
ROBOT, OTHER = b"1" * 40, b"2" * 40


class Cloud:
    def __init__(self, **quotas):
        quotas = Quotas(quotas, {ROBOT: "robot"}.get)
        settings = CloudSettings(kv_memory=1 << 20)
        self.engine, self.now = ToyEngine(), 0.0
        self.service = Service(Identity("t", "k", ()), self.engine, settings, quotas=quotas)

    def tell(self, message, key=ROBOT, connection=b""):
        replies = []
        for each in (Hello(VERSION, "t", "k", "x"), message):
            replies = self.service.receive(key[:1] + connection, pack(each), self.now, key)
        return replies[0][1] if replies else None

    def open(self, session, key=ROBOT, connection=b"", tokens=(1, 2, 3), most=5):
        terms = Terms(drafting=False)
        message = Open(session, SECRET, 3, most, Sampling(), [], terms, list(tokens))
        return self.tell(message, key, connection)

    def turn(self):
        batch = self.service.stepping.next(self.now)
        *_, last = self.engine.run(batch.rows)
        self.service.stepping.commit(batch, last.choices, self.now)
        return batch


def test_a_budget_refills_up_to_its_burst():
    budget = Budget(10.0, 3.0, 0.0)
    assert [budget.take(0.0) for _ in range(4)] == [True, True, True, False]
    assert [budget.take(0.1), budget.take(0.1)] == [True, False]
    assert [budget.take(99.0) for _ in range(4)] == [True, True, True, False]
    assert budget.take(0.0) is False, "a clock that goes back gives nothing"


def test_sessions_of_a_named_device_and_of_the_others():
    cloud = Cloud(robot=Quota(sessions=2), default=Quota(sessions=1))
    assert [type(cloud.open(n)) for n in (1, 2, 3)] == [Admitted, Admitted, Error]
    assert [type(cloud.open(n, OTHER)) for n in (4, 5)] == [Admitted, Error]


def test_tokens_a_day_refuse_new_sessions_until_some_have_refilled():
    cloud = Cloud(robot=Quota(tokens_per_day=10))
    for session in (1, 2):  # 8 tokens each
        assert isinstance(cloud.open(session), Admitted)
        while cloud.service.sessions.unfinished:
            cloud.turn()
        cloud.tell(Close(session, SECRET))
    refusal = cloud.open(3, connection=b"another")
    assert (refusal.code, refusal.retryable) == ("busy", True)
    assert "has used its 10 tokens a day; try again in" in refusal.message
    assert refusal.retry_ms == pytest.approx(7 * 8_640_000.0)
    assert isinstance(cloud.open(4, OTHER), Admitted)
    cloud.now = refusal.retry_ms / 1e3
    assert isinstance(cloud.open(3), Admitted)


def test_committed_tokens_of_an_open_count_as_its_prompt_does():
    cloud = Cloud(robot=Quota(tokens_per_day=100))
    cloud.open(1, tokens=[1] * 100, most=98)
    while cloud.service.sessions.unfinished:
        cloud.turn()
    refusal = cloud.open(2)
    assert "has used its 100 tokens a day" in refusal.message
    assert refusal.retry_ms == pytest.approx(2 * 864_000.0), "101 tokens, and one to begin with"


def test_tokens_of_a_session_that_is_opened_anew_with_more_count():
    cloud = Cloud(robot=Quota(tokens_per_day=10))
    cloud.open(1, most=20)
    for _ in range(8):
        cloud.turn()
    (session,) = cloud.service.sessions
    written = [*session.state.tokens, 1]
    assert "has used its 10 tokens a day" in cloud.open(1, tokens=written, most=20).message
    assert len(cloud.service.sessions) == 0


def test_tokens_count_once_when_a_device_asks_for_its_session_again():
    cloud = Cloud(robot=Quota(tokens_per_day=20))
    cloud.open(1)
    for _ in range(4):
        cloud.turn()
        cloud.open(1)
        cloud.tell(Resume(1, SECRET, 3))
    cloud.turn()
    assert isinstance(cloud.open(2), Admitted)
    cloud.tell(Close(2, SECRET))
    assert isinstance(cloud.open(3, most=10), Admitted), "8 + 3 of 20 tokens"
    cloud.tell(Close(3, SECRET))
    assert isinstance(cloud.open(4), Admitted), "14 of 20 tokens"


def test_a_session_that_is_closed_during_its_last_step_counts_once():
    cloud = Cloud(robot=Quota(tokens_per_day=10))
    cloud.open(1, most=1)
    batch = cloud.service.stepping.next(cloud.now)
    cloud.tell(Close(1, SECRET))
    *_, last = cloud.engine.run(batch.rows)
    cloud.service.stepping.commit(batch, last.choices, cloud.now)
    assert cloud.service.tally.finished == {"closed": 1}
    cloud.open(2, most=1)
    cloud.turn()
    assert isinstance(cloud.open(3), Admitted), "7 of 10 tokens, not 11"


def test_ids_beyond_the_quota_are_not_verified_and_the_target_goes_on():
    cloud = Cloud(robot=Quota(drafted_ids_per_s=1))
    message = Open(1, SECRET, 3, 400, Sampling(), [], Terms(decoding=False), [1, 2, 3])
    cloud.tell(message)
    cloud.turn()
    (session,) = cloud.service.sessions
    widths = []
    for number in range(1, 5):
        cloud.tell(Draft(1, number, 0, session.length, [7] * 30))
        widths.append(len(cloud.turn().rows[0].tokens))
    assert widths == [31, 31, 1, 1]


def test_bytes_a_second_hold_for_all_connections_of_a_key():
    cloud = Cloud(robot=Quota(bytes_per_s=1000))
    usage = cloud.service._quotas.of_owner(ROBOT, b"", 0.0)
    assert usage.take_packet((1 << 20) - 200, 0.0)
    replies = [cloud.tell(Ping(1), connection=bytes([n])) for n in range(20)]
    assert isinstance(replies[0], Pong) and replies[-1] is None
    assert isinstance(cloud.tell(Ping(1), OTHER), Pong)
    cloud.now = 1.0
    assert isinstance(cloud.tell(Ping(1)), Pong)


def test_the_bounds_of_a_link_hold_for_all_connections_of_a_key():
    cloud = Cloud()
    packets = int(LinkLimits().burst_packets) // 2  # each message follows a Hello
    replies = [cloud.tell(Ping(1), connection=bytes([n % 16])) for n in range(packets + 8)]
    assert [type(reply) for reply in replies] == [Pong] * packets + [type(None)] * 8
    assert isinstance(cloud.tell(Ping(1), OTHER), Pong)
    assert isinstance(cloud.tell(Ping(1), key=b"", connection=b"a"), Pong)
    cloud.now = 1.0
    assert isinstance(cloud.tell(Ping(1)), Pong)


def test_a_file_of_quotas(tmp_path):
    file = tmp_path / "quotas.json"
    file.write_text('{"default": {"sessions": 4}, "robot": {"tokens_per_day": 9}}')
    assert read_quotas(file) == {"default": Quota(sessions=4), "robot": Quota(tokens_per_day=9)}
    for text in ("[]", '{"robot": {"tokens": 4}}', '{"robot": {"sessions": -1}}', "{"):
        file.write_text(text)
        with pytest.raises(UsageError, match="holds no quotas"):
            read_quotas(file)
    with pytest.raises(UsageError, match="cannot be read"):
        read_quotas(tmp_path / "none")
