"""A device does not wait for a slow grammar: its answer is not drafted meanwhile."""

import time

import pytest

from edge_runtime.drafting import Drafting
from edgespec.config import Request
from edgespec.errors import LinkError
from edgespec.grammars import Grammars
from edgespec.policies import GrammarLimits
from engines.drafters.model import ModelDrafter
from engines.toy import ToyEngine
from tests.cloud_runtime.test_masks import END, STUCK


def test_a_slow_grammar_stalls_no_turn_of_the_device(house, tiny_llama_folder, monkeypatch):
    limits = GrammarLimits(mask_s=1.0, reply_s=60.0)
    grammars = Grammars(tiny_llama_folder / "tokenizer.json", [END], limits)
    mask = grammars.start(STUCK, [END])
    mask.wait()
    home = house(ToyEngine(300), (END,), grammars=grammars, tick=1e-6)
    loop = home.device(ModelDrafter(ToyEngine(300), "toy"), mode="edge", give_up=1e9)
    turns_s = []
    turn = Drafting.turn

    def timed(self, answers):
        began = time.monotonic()
        busy = turn(self, answers)
        turns_s.append(time.monotonic() - began)
        if len(turns_s) % 50 == 0:
            time.sleep(1e-3)  # real time for the grammar
        return busy

    monkeypatch.setattr(Drafting, "turn", timed)
    with pytest.raises(LinkError, match="too much time"):
        list(loop.write(loop.start(Request((3, 1, 4), 20, grammar=STUCK), grammar=mask)))
    assert max(turns_s) < 0.5
    grammars.close()
