"""A cloud does not wait for a slow grammar: its session is left out of steps, the others go on."""

import time

import pytest

from edgespec.config import Request
from edgespec.errors import LinkError
from edgespec.grammar import Grammar
from edgespec.grammars import Grammars
from edgespec.policies import GrammarLimits
from engines.drafters.none import NoDrafter
from engines.toy import ToyEngine

END = 1
STUCK = Grammar("lark", 'start: ("x" | "y") /aa*/ /ab/\n')
"""Compiles at once; its second mask never comes."""


@pytest.fixture
def home(house, tiny_llama_folder):
    limits = GrammarLimits(mask_s=1.5, reply_s=60.0)
    grammars = Grammars(tiny_llama_folder / "tokenizer.json", [END], limits)
    grammars.start(STUCK, [END]).wait()  # the process is there
    yield house(ToyEngine(300), (END,), grammars=grammars, tick=1e-6)
    grammars.close()


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
