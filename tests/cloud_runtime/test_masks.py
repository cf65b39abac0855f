"""A cloud does not wait for a slow grammar: its session is left out of steps, the others go on."""

import time

import pytest

from cloud_runtime.devices import ConnectedDevice
from edgespec.config import Request
from edgespec.errors import LinkError
from edgespec.grammar import Grammar
from edgespec.grammars import Grammars
from edgespec.policies import GrammarLimits
from edgespec.protocol import Admitted, Open, Terms, Verdict
from edgespec.sampling import Sampling
from engines.drafters.none import NoDrafter
from engines.toy import ToyEngine

END = 1
WORDS = Grammar("regex", "[a-z]+")
STUCK = Grammar("lark", 'start: ("x" | "y") /aa*/ /ab/\n')
"""Compiles at once; its second mask never comes."""


@pytest.fixture
def home(house, tiny_llama_folder):
    limits = GrammarLimits(mask_s=1.5, reply_s=60.0)
    grammars = Grammars(tiny_llama_folder / "tokenizer.json", [END], limits)
    grammars.start(STUCK, [END]).wait()  # the process is there
    yield house(ToyEngine(300), (END,), grammars=grammars, tick=1e-6)
    grammars.close()


def opening(session, end=()):
    tokens = [3, 1, 4, *end]
    return Open(session, b"s" * 16, 3, 20, Sampling(), [END], Terms(), tokens, grammar=WORDS)


def test_an_open_whose_answer_is_complete_starts_no_grammar(home, monkeypatch):
    monkeypatch.setattr(Grammars, "start", None)
    device = ConnectedDevice(b"one", 0.0)
    reply = home.service.sessions.open(device, opening(1, [END]), 0.0)
    assert isinstance(reply, Verdict) and reply.finish == "end"


def test_a_device_with_its_share_of_grammars_is_asked_to_try_again(home):
    sessions, one, two = home.service.sessions, ConnectedDevice(b"1", 0.0), ConnectedDevice(b"2", 0)
    replies = [sessions.open(one, opening(number), 0.0) for number in range(17)]
    assert [isinstance(reply, Admitted) for reply in replies] == [True] * 16 + [False]
    assert replies[16].code == "busy"
    assert isinstance(sessions.open(two, opening(17), 0.0), Admitted)


def test_a_device_whose_grammar_was_slow_is_asked_to_wait(home):
    home.grammars._punish(b"1")
    reply = home.service.sessions.open(ConnectedDevice(b"1", 0.0), opening(1), 0.0)
    assert reply.code == "busy" and "too much time" in reply.message and reply.retry_ms > 20e3


def test_a_slow_grammar_stalls_no_other_session(home):
    loop = home.device(NoDrafter(), mode="cloud", give_up=1e9)
    stuck = loop.write(loop.start(Request((3, 1, 4), 20, grammar=STUCK)))
    turns_s, free_tokens = [], 0
    turn = home.cloud.turn

    def timed(patience_s):
        began = time.monotonic()
        turn(patience_s)
        turns_s.append(time.monotonic() - began)
        if len(turns_s) % 50 == 0:
            time.sleep(1e-3)  # real time for the grammar

    home.cloud.turn = timed
    next(stuck)
    request = Request((3, 1, 5), 60)
    free = home.device(NoDrafter(), mode="cloud", give_up=1e9)
    answer = free.start(request)
    for _ in free.write(answer):
        free_tokens += 1
    assert free_tokens and answer.stats.token_ids == home.alone(request)
    with pytest.raises(LinkError, match="too much time"):
        list(stuck)
    assert max(turns_s) < 1.0
    assert home.service.sessions.active == 0
