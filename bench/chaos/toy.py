"""The toy target and drafts of all processes, and requests drawn at random."""

from __future__ import annotations

import random
import time
from collections.abc import Iterator, Sequence
from typing import Any

from edgespec.config import NGRAM, NO_DRAFTER, Request, Tactics
from edgespec.protocol import VERSION, Hello
from edgespec.sampling import Sampling
from engines.base import Row, SegmentDone
from engines.drafters.base import Drafter
from engines.drafters.model import ModelDrafter
from engines.drafters.ngram import NgramDrafter
from engines.drafters.none import NoDrafter
from engines.toy import ToyEngine

CONTEXT_TOKENS = 1024
VOCABULARY = 50
DRAFT_NOISE = 0.3
DRAFT = "toy"
"""Name of the draft model."""
STEP_S = 0.003
"""Time of a step of the target, so that faults find answers in flight."""
LONGEST_PROMPT_TOKENS, LONGEST_ANSWER_TOKENS = 80, 400

TACTICS = (
    Tactics(),
    Tactics(branches=False),
    Tactics(hints=True),
    Tactics(lockstep=True),
    Tactics("none"),
    Tactics("none", lockstep=False),
    Tactics("exits"),
)


class PacedEngine(ToyEngine):
    """A model with steps of `STEP_S`."""

    def run(self, rows: Sequence[Row]) -> Iterator[SegmentDone]:
        time.sleep(STEP_S)
        yield from super().run(rows)


def target() -> ToyEngine:
    return ToyEngine(VOCABULARY, CONTEXT_TOKENS)


def paced_target() -> ToyEngine:
    return PacedEngine(VOCABULARY, CONTEXT_TOKENS)


def hello(device: str) -> Hello:
    return Hello(VERSION, "toy", "toy", device)


def cloud_draft() -> ModelDrafter:
    return ModelDrafter(ToyEngine(VOCABULARY, CONTEXT_TOKENS, noise=DRAFT_NOISE), "toy", branches=1)


def any_drafter(chance: random.Random) -> Drafter:
    """A draft model, prompt lookup, or none."""
    kind = chance.choice(["model", "model", NGRAM, NO_DRAFTER])
    if kind == NGRAM:
        return NgramDrafter()
    if kind == NO_DRAFTER:
        return NoDrafter()
    engine = chance.choice([ToyEngine, PacedEngine])
    return ModelDrafter(engine(VOCABULARY, CONTEXT_TOKENS, noise=DRAFT_NOISE), DRAFT)


def any_request(chance: random.Random) -> Request:
    prompt = [chance.randrange(VOCABULARY) for _ in range(chance.randint(1, LONGEST_PROMPT_TOKENS))]
    temperature = chance.choice([0.0, 0.7, 1.0])
    top_p, top_k = chance.choice([(1.0, 0), (0.9, 0), (1.0, 5)])
    sampling = Sampling(temperature, top_p, top_k, chance.getrandbits(62), **_adjusting(chance))
    most, logprobs = chance.randint(1, LONGEST_ANSWER_TOKENS), chance.choice([None, None, 0, 5])
    return Request(tuple(prompt), most, sampling, logprobs=logprobs)


def _adjusting(chance: random.Random) -> dict[str, Any]:
    """Penalties and biases for half of the requests."""
    if chance.random() < 0.5:
        return {}
    biased = chance.sample(range(VOCABULARY), chance.randrange(4))
    return {
        "min_p": chance.choice([0.0, 0.05]),
        "presence_penalty": chance.choice([0.0, 1.0]),
        "frequency_penalty": chance.choice([0.0, 0.3, -0.1]),
        "repetition_penalty": chance.choice([1.0, 1.3]),
        "logit_bias": tuple((token, chance.uniform(-9.0, 9.0)) for token in sorted(biased)),
    }
