"""Device and cloud in one process, and the targets that tests run on."""

from __future__ import annotations

import itertools
import json
import random
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from cloud_runtime.costs import Speeds, StepCosts
from cloud_runtime.server import CloudLoop
from cloud_runtime.service import Identity, Service
from edge_runtime.handshake import DeviceIdentity
from edge_runtime.loop import EdgeLoop
from edge_runtime.observer import UNOBSERVED
from edgespec.config import CloudSettings, EdgeSettings, Request
from edgespec.grammars import Grammars
from edgespec.loopback import LoopbackHub
from edgespec.manifest import Bundle
from edgespec.protocol import VERSION, Hello
from engines.alone import write_alone
from engines.base import Engine
from engines.drafters.base import Guess

HELLO = Hello(VERSION, "target", "tokenizer", "a device")


class Hostile:
    """Proposes garbage, also ids that no vocabulary has, and more than it was asked for."""

    name = "hostile"

    def __init__(self, vocabulary: int) -> None:
        self._ids = [0, 1, 7, vocabulary - 1, vocabulary, 10**6, 2**31 - 1]
        self._random = random.Random(0)

    batch = 1
    acceptance = 0.5

    def retain(self, sessions):
        pass

    def guess(self, requests):
        choice = self._random.choice
        return [
            Guess(choice(self._ids), self._random.uniform(0.01, 0.99), ((choice(self._ids), 0.3),))
            for _ in requests
        ]


@dataclass
class House:
    """A cloud over `engine`, and devices that connect to it without a socket."""

    engine: Engine
    end_ids: tuple[int, ...] = ()
    settings: CloudSettings = field(default_factory=CloudSettings)
    cloud_draft: object = None
    """A `ModelDrafter`."""
    arithmetic: str = ""
    grammars: Grammars | None = None
    tick: float = 1e-3
    """Seconds from one look at its clock to the next."""

    def __post_init__(self):
        self.hub = LoopbackHub()
        self.start()

    def start(self):
        """A cloud without memory of sessions, on the same hub."""
        ticks = itertools.count()
        identity = Identity("target", "tokenizer", (1, 2), self.arithmetic)
        speeds = Speeds(cloud_draft=StepCosts((5e-3, 0.0, 0.0, 0.0)) if self.cloud_draft else None)
        self.service = Service(identity, self.engine, self.settings, speeds, grammars=self.grammars)
        self.cloud = CloudLoop(
            self.hub,
            self.service,
            self.engine,
            self.settings,
            clock=lambda: next(ticks) * self.tick,
            drafter=self.cloud_draft,
        )
        self.hub.pump = lambda: self.cloud.turn(0.0)

    def close(self):
        """Gives the slots back, also those that are kept: an engine may outlive a test."""
        memory = self.service.memory
        for entry in list(memory._entries._entries.values()):
            memory._entries.close(entry)

    def hostile(self):
        return Hostile(self.engine.vocabulary)

    def device(self, drafter, observer=UNOBSERVED, **settings):
        link = self.hub.connect()
        edge = EdgeSettings(**settings)
        identity = DeviceIdentity(HELLO, self.end_ids)
        return EdgeLoop.connect(link, drafter, identity, edge, observer, link.clock)

    def answer(self, drafter, request: Request, *, text=None, **options):
        loop = self.device(drafter, **options)
        answer = loop.start(request, text, self.grammar(request))
        answer.text = "".join(piece.text for piece in loop.write(answer))
        return answer

    @staticmethod
    def together(loops, requests):
        """The answers of several devices that write at once, a token each in turn."""
        answers = [loop.start(request) for loop, request in zip(loops, requests, strict=True)]
        running = [loop.write(answer) for loop, answer in zip(loops, answers, strict=True)]
        while running:
            running = [pieces for pieces in running if next(pieces, None) is not None]
        return answers

    def grammar(self, request: Request):
        """The request's grammar, for a device or the target alone; None: it has none."""
        return request.grammar and self.grammars.start(request.grammar, self.end_ids)

    def alone(self, request: Request) -> list[int]:
        grammar = self.grammar(request)
        try:
            return write_alone(
                self.engine, request.prompt, request.max_tokens, request.sampling, self.end_ids,
                grammar,
            )  # fmt: skip
        finally:
            if grammar:
                grammar.close()


@pytest.fixture
def house():
    houses = []

    def build(*about, **more):
        houses.append(House(*about, **more))
        return houses[-1]

    yield build
    for one in houses:
        one.close()


def write_tiny_llama(folder: Path) -> Path:
    """Three layers of random weights and a byte-level BPE tokenizer of 300 ids."""
    import tokenizers
    import torch
    import transformers
    from tokenizers import decoders, models, pre_tokenizers, trainers

    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=300,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        initializer_range=0.2,
        bos_token_id=0,
        eos_token_id=1,
    )
    transformers.LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer = tokenizers.Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=["<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(["the quick brown fox jumps over the lazy dog " * 3], trainer)
    tokenizer.save(str(folder / "tokenizer.json"))
    special = {"bos_token": "<s>", "eos_token": "</s>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(special))
    return folder


@pytest.fixture(scope="session")
def tiny_llama_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Hugging Face folder; do not change it."""
    return write_tiny_llama(tmp_path_factory.mktemp("tiny") / "llama")


@pytest.fixture(scope="session")
def tiny_bundle(tiny_llama_folder: Path) -> Bundle:
    """`tiny_llama_folder` as an fp32 target in three segments, with two drafts of itself.

    Do not change it.
    """
    from edgespec.manifest import SELF_DRAFT
    from export.bundle import ExportSettings, export

    return export(
        ExportSettings(
            target=str(tiny_llama_folder),
            out=tiny_llama_folder.parent / "bundle",
            segments=3,
            drafts=(("cpu-fp32", SELF_DRAFT), ("cpu-int8", SELF_DRAFT)),
        )
    )


@pytest.fixture(scope="session")
def tiny_recording(tiny_bundle: Bundle):
    """What the tiny target and its int8 draft say to three prompts."""
    from bench.lab.recording import Recording, record
    from engines.drafters.model import ModelDrafter
    from engines.onnxruntime_backend.engine import (
        OrtSettings,
        device_settings,
        load_draft,
        load_target,
    )

    prompts = [[5 + n, 9, 40 + n, 7] for n in range(3)]
    target = load_target(tiny_bundle, OrtSettings(threads=1, slots=17))
    engine = load_draft(tiny_bundle, "cpu-int8", device_settings("cpu-int8", 1, 4))
    said = dict(record(target, ModelDrafter(engine, "tiny"), prompts, 12, [1]))
    return Recording("tiny", [4, 4, 4], [said[n] for n in range(3)], prompts)
