"""Random JSON schemas: the output is valid, and the target's own with drafts and after a cut link.

More of them: EDGESPEC_SCHEMAS=200 pytest tests/system/test_random_schemas.py
"""

import os
import random

import pytest

from bench.structured.judging import fault
from bench.structured.schemas import random_schema
from edgespec.config import Request
from edgespec.grammar import json_grammar
from edgespec.sampling import Sampling
from engines.drafters.model import ModelDrafter
from engines.drafters.ngram import NgramDrafter
from engines.drafters.none import NoDrafter
from engines.toy import ToyEngine
from tests.system.test_grammar_exactness import END, VOCABULARY, grammars, tokenizer
from tests.trouble import Trouble

__all__ = ["grammars", "tokenizer"]
SCHEMAS = int(os.environ.get("EDGESPEC_SCHEMAS", "8"))
DRAFTERS = [
    lambda: ModelDrafter(ToyEngine(VOCABULARY, 2048, noise=0.3), "near"),
    NgramDrafter,
    NoDrafter,
]


@pytest.mark.parametrize("seed", range(SCHEMAS))
def test_the_output_is_valid_and_the_same_in_every_way(house, grammars, tokenizer, seed):
    chance = random.Random(seed)
    schema = random_schema(chance)
    sampling = chance.choice([Sampling(), Sampling(0.8, seed=seed), Sampling(1.0, 0.9, 20, seed)])
    home = house(ToyEngine(VOCABULARY, 2048), (END,), grammars=grammars)
    request = Request((3, 1, 4), 2000, sampling, grammar=json_grammar(schema))
    expected = home.alone(request)
    assert expected[-1] == END
    assert not fault(tokenizer.decode(expected), schema)
    for make in DRAFTERS:
        assert home.answer(make(), request).stats.token_ids == expected
    loop = home.device(DRAFTERS[0](), give_up=1e9)
    answer = loop.start(request, None, home.grammar(request))
    Trouble(loop._link, chance)
    for number, _ in enumerate(loop.write(answer)):
        if number == len(expected) // 2:
            home.start()  # another cloud, which does not know the session
    assert answer.stats.token_ids == expected
