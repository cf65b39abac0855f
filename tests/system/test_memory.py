"""Little memory and many devices: slots are taken away and given back, and no text changes."""

from __future__ import annotations

import random

import pytest

from edgespec.config import CloudSettings, Request, Tactics
from edgespec.sampling import Sampling
from engines.alone import write_alone
from engines.drafters.model import ModelDrafter
from engines.drafters.ngram import NgramDrafter
from engines.drafters.none import NoDrafter
from engines.onnxruntime_backend.engine import OrtSettings, load_target
from engines.toy import ToyEngine
from tests.trouble import WAYS, Trouble

SYSTEM = tuple(7 * number % 50 for number in range(40))
"""What all prompts begin with."""
KINDS = [
    lambda: ModelDrafter(ToyEngine(noise=0.3), "near"),
    NgramDrafter,
    NoDrafter,  # the cloud drafts for it, or nobody does
    lambda: ModelDrafter(ToyEngine(20), "small"),
]
SLOT = ToyEngine().slot_bytes(1)


def request(number):
    chance = random.Random(number)
    prompt = (*SYSTEM, *(chance.randrange(50) for _ in range(chance.randrange(3, 240))))
    sampling = chance.choice([Sampling(), Sampling(1.0, 0.9, seed=number)])
    return Request(prompt, chance.randrange(10, 60), sampling)


def counted_rows(home):
    """Rows of every step of its target from now on."""
    rows, run = [], home.engine.run

    def counted(batch):
        rows.append(len(batch))
        return run(batch)

    home.engine.run = counted
    return rows


@pytest.mark.parametrize("slots", [4, 10, 40])
def test_every_answer_of_sixty_four_devices_of_four_kinds_is_the_targets_own(house, slots):
    """In every way of writing, on links in trouble, joining and leaving, with memory for few."""
    cloud_draft = ModelDrafter(
        ToyEngine(noise=0.3, slots=6), "toy", branches=1, memory_bytes=4 * SLOT
    )
    settings = CloudSettings(kv_memory=slots * SLOT, idle_timeout=1e9, max_draft=8)
    home = house(ToyEngine(), settings=settings, cloud_draft=cloud_draft)
    chance, reference = random.Random(slots), ToyEngine()
    waiting = list(range(64))
    running: dict[int, tuple] = {}
    widths = counted_rows(home)
    vanished, checked = 0, 0
    while waiting or running:
        while waiting and (len(running) < 40 or chance.random() < 0.02):
            number = waiting.pop(0)
            drafter = KINDS[number % len(KINDS)]()
            ways = list(WAYS.values())
            loop = home.device(drafter, **ways[number % len(ways)], give_up=1e9)
            wanted = request(number)
            answer = loop.start(wanted)
            if number % 5 == 4:
                Trouble(loop._link, chance)
            running[number] = (loop.write(answer), answer, wanted)
        for number, (pieces, answer, wanted) in list(running.items()):
            if number % 9 == 8 and answer.stats.tokens > 5:
                vanished += 1
                if vanished % 2:
                    pieces.close()
                del running[number]
            elif next(pieces, None) is None:
                del running[number]
                checked += 1
                assert answer.stats.token_ids == write_alone(
                    reference, wanted.prompt, wanted.max_tokens, wanted.sampling
                )
    memory = home.service.memory
    assert checked == 64 - vanished and vanished > 4
    assert memory.counts.prefix_hits > 20 * len(SYSTEM)
    assert (memory.counts.evictions > 0) == (slots < 40)
    assert memory.session_bytes + memory.kept_bytes <= memory.limit
    tally = home.service.tally
    assert tally.cloud_draft_steps > 100 and tally.accepted > 0
    assert max(widths) >= 4, "they share steps"


def test_a_real_target_evicts_copies_and_writes_the_same(house, tiny_bundle):
    engine, reference = (load_target(tiny_bundle, OrtSettings()) for _ in range(2))
    memory = 3 * engine.slot_bytes(1)
    engine.limit(memory)
    home = house(engine, settings=CloudSettings(kv_memory=memory, prefill_chunk=32))
    begin = [5 + 3 * number % 290 for number in range(60)]
    requests = [
        Request((*begin, *range(5, 6 + 9 * n)), 40, Sampling(0.7 * (n % 2), seed=n))
        for n in range(12)
    ]
    drafters = [NgramDrafter() if n % 3 else NoDrafter() for n in range(12)]
    ways = [{}, {"mode": "edge"}, {"tactics": Tactics("none"), "draft_length": 4}]
    loops = [home.device(d, **ways[n % 3], give_up=1e9) for n, d in enumerate(drafters)]
    for wanted, answer in zip(requests, home.together(loops, requests), strict=True):
        assert answer.stats.token_ids == write_alone(
            reference, wanted.prompt, wanted.max_tokens, wanted.sampling
        )
    counts = home.service.memory.counts
    assert counts.evictions and counts.read_again and counts.prefix_hits > 6 * len(begin)
