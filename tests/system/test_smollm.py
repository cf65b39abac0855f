"""SmolLM2-135M, the real thing: bits, text, and agreement with transformers."""

from __future__ import annotations

import random

import pytest
import torch
import transformers

from bench.lab.builtin import SMALL, builtin_bundle, weights_file
from edgespec.config import CloudSettings, Request, Tactics
from edgespec.errors import EdgespecError
from edgespec.manifest import COMPAT_OPSET, MAIN_OPSET
from edgespec.sampling import Sampling
from edgespec.text import Codec, TextStream
from engines.alone import write_alone
from engines.drafters.model import ModelDrafter
from engines.drafters.ngram import NgramDrafter
from engines.drafters.none import NoDrafter
from engines.exactness import measure_bundle, report_cases
from engines.machine.profiles import precisions
from engines.onnxruntime_backend.engine import OrtSettings, load_draft, load_target
from export.bundle import ExportSettings, export
from export.sources.open import open_checkpoint
from tests.trouble import WAYS, Fickle, Trouble

try:
    WEIGHTS = str(weights_file())
except EdgespecError as error:
    pytest.skip(str(error), allow_module_level=True)

QUESTIONS = [
    "Why is the sky blue?",
    "Write a haiku about rain.",
    "What is 12 plus 30?",
    "Name three colours.",
    "Explain gravity to a child.",
    "def fibonacci(n):",
    "Translate 'good morning' into French.",
    "List the planets.",
    "The robot turned left and",
    "Summarise: water boils at 100 degrees Celsius at sea level.",
]
SAMPLINGS = [
    Sampling(),
    Sampling(0.7, 0.9, seed=1),
    Sampling(0.7, 0.9, seed=2),
    Sampling(1.0, 0.9, seed=3),
    Sampling(1.0, seed=4),
]


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    out = tmp_path_factory.mktemp("smollm") / "fp32"
    drafts = (("cpu-int8", "self"), ("cpu-int4", "self"), ("cpu-compat", "self"))
    return export(ExportSettings(WEIGHTS, out, split=(20, 25), drafts=drafts))


@pytest.fixture(scope="module")
def codec(bundle):
    return Codec(bundle)


@pytest.fixture(scope="module")
def target(bundle):
    return load_target(bundle, OrtSettings(threads=2))


@pytest.fixture(scope="module")
def drafts(bundle):
    """Drafters are reset at the start of every answer, so they can be shared."""
    return {
        profile: ModelDrafter(
            load_draft(bundle, profile, OrtSettings(threads=2, slots=1, min_tokens=1)), profile
        )
        for profile in bundle.manifest.drafts
    }


def chat(codec, question):
    return tuple(codec.encode(codec.render([{"role": "user", "content": question}]), chat=True))


@pytest.mark.parametrize(
    ("precision", "opset"),
    [
        ("fp32", MAIN_OPSET),
        ("int8", MAIN_OPSET),
        ("int4", MAIN_OPSET),
        ("int8", COMPAT_OPSET),
    ],
)
def test_every_way_of_computing_a_token_gives_the_same_bits(tmp_path, bundle, precision, opset):
    if (precision, opset) != ("fp32", MAIN_OPSET):
        settings = ExportSettings(
            WEIGHTS,
            tmp_path / precision,
            precisions=precisions(precision),
            opset=opset,
            segments=3,
        )
        bundle = export(settings)
    cases = measure_bundle(bundle)
    assert len(cases) == 26
    assert all(case.identical for case in cases), report_cases(cases)


@pytest.mark.parametrize("sampling", SAMPLINGS[::2], ids=str)
def test_the_answer_is_the_targets_own(house, target, codec, drafts, sampling):
    """Every drafter, streaming and at each length of a round."""
    home = house(target, end_ids=(2,))
    request = Request(chat(codec, QUESTIONS[0]), 20, sampling)
    expected = write_alone(target, request.prompt, 20, sampling, (2,))
    runs = [("cpu-int8", length) for length in (0, 1, 4)]
    runs += [(name, length) for name in ("ngram", "hostile") for length in (0, 6)]
    runs += [("cpu-int4", 8), ("cpu-compat", 0)]
    for name, length in [*runs, ("none", 0)]:
        drafter = {"ngram": NgramDrafter, "hostile": home.hostile, "none": NoDrafter}.get(name)
        answer = home.answer(
            drafter() if drafter else drafts[name],
            request,
            tactics=Tactics("none" if length else "tree"),
            draft_length=length or 1,
        )
        assert answer.stats.token_ids == expected, (name, length)


def test_a_stop_string_ends_the_answer_wherever_rounds_fall(house, target, codec, drafts):
    home = house(target, end_ids=(2,))
    prompt = chat(codec, QUESTIONS[0])
    tokens = write_alone(target, prompt, 24, Sampling(), (2,))
    text = codec.decode(tokens)
    # From the middle of one word to the middle of another: several tokens, so several rounds.
    words = text.split()
    stop = f"{words[6][1:]} {words[7]} {words[8][:2]}"
    ending = next(n for n in range(24) if stop in codec.decode(tokens[: n + 1]))
    for length in (0, 1, 3, 6):
        answer = home.answer(
            drafts["cpu-int8"],
            Request(prompt, 24, stops=("never", stop)),
            tactics=Tactics("none" if length else "tree"),
            draft_length=length or 1,
            text=TextStream(codec, prompt, ("never", stop)),
        )
        assert answer.text == text[: text.index(stop)]
        assert answer.stats.token_ids == tokens[: ending + 1]
        assert answer.stats.finish == "stop"


def test_four_devices_at_once(house, target, codec, drafts):
    home = house(target, end_ids=(2,))
    drafters = [drafts["cpu-int8"], NgramDrafter(), home.hostile(), NoDrafter()]
    requests = [
        Request(chat(codec, QUESTIONS[number] + " Please." * 9 * number), 24, SAMPLINGS[number])
        for number in range(4)
    ]
    expected = [write_alone(target, r.prompt, 24, r.sampling, (2,)) for r in requests]
    loops = [home.device(drafter) for drafter in drafters]
    answers = home.together(loops, requests)
    assert [answer.stats.token_ids for answer in answers] == expected


@pytest.fixture(scope="module")
def pair():
    """The built-in pair, with a draft for the device and one for the cloud."""
    bundle = builtin_bundle()
    calibration = bundle.draft(SMALL).calibration

    def draft(slots):
        return load_draft(bundle, SMALL, OrtSettings(threads=2, slots=slots, min_tokens=1))

    target = load_target(bundle, OrtSettings(threads=2))
    drafter = ModelDrafter(draft(4), SMALL, calibration)
    return target, drafter, ModelDrafter(draft(2), SMALL, calibration, branches=1)


def written(pair, codec, texts, question, sampling):
    """The target's own 24 tokens, each written once."""
    key = question, sampling
    if key not in texts:
        prompt = chat(codec, QUESTIONS[question])
        texts[key] = write_alone(pair[0], prompt, 24, sampling, (2,))
    return texts[key]


@pytest.fixture(scope="module")
def texts():
    return {}


@pytest.mark.parametrize("sampling", [SAMPLINGS[0], SAMPLINGS[3]], ids=["greedy", "sampled"])
@pytest.mark.parametrize("way", WAYS)
def test_every_way_and_a_link_in_trouble_give_the_targets_text(
    house, pair, codec, texts, way, sampling
):
    """Packets that are late, lost, doubled and out of order; terms that change in the middle."""
    target, drafter, cloud_draft = pair
    for seed in range(2):
        chance = random.Random(f"{way} {sampling} {seed}")
        home = house(target, end_ids=(2,), cloud_draft=cloud_draft)
        question = chance.randrange(3)
        request = Request(chat(codec, QUESTIONS[question]), 24, sampling)
        loop = home.device(drafter, **WAYS[way], give_up=1e9)
        answer = loop.start(request)
        Trouble(loop._link, chance)
        if seed and loop.modes.terms.decoding:
            loop.modes = Fickle(loop.modes, chance)
        for _ in loop.write(answer):
            pass
        expected = written(pair, codec, texts, question, sampling)
        assert answer.stats.token_ids == expected, (question, seed)
        while home.service.sessions.active:  # a link in trouble may keep the device's last word
            home.service.sessions.remove(home.service.sessions.unfinished[0], "closed", 0.0)


def test_every_answer_of_eight_devices_of_four_kinds_with_memory_for_three_is_the_targets_own(
    house, pair, codec, texts
):
    """A draft on the device, prompt lookup, the cloud's draft, lock-step."""
    target, drafter, cloud_draft = pair
    settings = CloudSettings(kv_memory=3 * target.slot_bytes(1), idle_timeout=1e9)
    home = house(target, end_ids=(2,), cloud_draft=cloud_draft, settings=settings, tick=0.05)
    kinds = [
        (lambda: drafter, {}),
        (NgramDrafter, {"mode": "edge"}),
        (NoDrafter, {"mode": "cloud-draft"}),
        (NgramDrafter, {"tactics": Tactics("none"), "draft_length": 4}),
    ]
    requests = [
        Request(chat(codec, QUESTIONS[number % 3]), 16, SAMPLINGS[3 * (number // 4)])
        for number in range(8)
    ]
    loops = [home.device(make(), **way, give_up=1e9) for make, way in kinds * 2]
    for number, answer in enumerate(home.together(loops, requests)):
        sampling = requests[number].sampling
        expected = written(pair, codec, texts, number % 3, sampling)[:16]
        assert answer.stats.token_ids == expected, number
    counts, memory = home.service.memory.counts, home.service.memory
    assert counts.evictions > 0 and counts.read_again > 0
    assert memory.session_bytes + memory.kept_bytes <= memory.limit
    assert home.service.tally.cloud_draft_steps > 0


@pytest.fixture(scope="module")
def reference():
    """transformers on the checkpoint's weights, which tests/export holds against its loader."""
    checkpoint = open_checkpoint(WEIGHTS)
    shapes = checkpoint.architecture
    config = transformers.LlamaConfig(
        vocab_size=shapes.vocabulary,
        hidden_size=shapes.hidden,
        intermediate_size=shapes.intermediate,
        num_hidden_layers=shapes.layers,
        num_attention_heads=shapes.heads,
        num_key_value_heads=shapes.kv_heads,
        max_position_embeddings=shapes.context,
        rms_norm_eps=shapes.norm_epsilon,
        rope_parameters={"rope_type": "default", "rope_theta": 100000.0},
        tie_word_embeddings=True,
    )
    model = transformers.LlamaForCausalLM(config).eval()
    weights = {name: torch.tensor(checkpoint.tensor(name)) for name in checkpoint.names()}
    missing = model.load_state_dict(weights, strict=False).missing_keys
    assert missing in ([], ["lm_head.weight"])
    return model


@pytest.mark.parametrize("question", QUESTIONS)
def test_greedy_continuation_equals_transformers(reference, target, codec, question):
    ids = chat(codec, question)
    with torch.no_grad():
        written = reference.generate(
            torch.tensor([ids]),
            max_new_tokens=64,
            do_sample=False,
            eos_token_id=2,
            pad_token_id=2,
        )[0, len(ids) :].tolist()
    assert write_alone(target, ids, 64, Sampling(), (2,)) == written
