"""SmolLM2-135M, the real thing: bits, text, and agreement with transformers."""

from __future__ import annotations

import pytest
import torch
import transformers

from bench.builtin import weights_file
from edge_runtime.drafters import ModelDrafter, NgramDrafter, NoDrafter
from edgespec.config import Request
from edgespec.errors import EdgespecError
from edgespec.profiles import precisions
from edgespec.sampling import Sampling
from edgespec.text import Codec, TextStream
from engines.alone import write_alone
from engines.exactness import measure_bundle, report_cases
from engines.ort import OrtSettings, load_draft, load_target
from export.bundle import ExportSettings, export
from export.checkpoint import open_checkpoint

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
    drafts = (("cpu-int8", "self"), ("cpu-int4", "self"))
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


@pytest.mark.parametrize("precision", ["fp32", "int8", "int4"])
def test_every_way_of_computing_a_token_gives_the_same_bits(tmp_path, bundle, precision):
    if precision != "fp32":
        settings = ExportSettings(
            WEIGHTS, tmp_path / precision, precisions=precisions(precision), segments=3
        )
        bundle = export(settings)
    cases = measure_bundle(bundle)
    assert len(cases) == 24
    assert all(case.identical for case in cases), report_cases(cases)


@pytest.mark.parametrize("sampling", SAMPLINGS, ids=str)
def test_the_answer_is_the_targets_own(house, target, codec, drafts, sampling):
    home = house(target, end_ids=(2,))
    request = Request(chat(codec, QUESTIONS[0]), 20, sampling)
    expected = write_alone(target, request.prompt, 20, sampling, (2,))
    runs = [("cpu-int8", length) for length in range(1, 9)]
    runs += [(name, length) for name in ("cpu-int4", "ngram", "hostile") for length in (3, 8)]
    for name, length in [*runs, ("none", 1)]:
        drafter = {"ngram": NgramDrafter, "hostile": home.hostile, "none": NoDrafter}.get(name)
        answer = home.answer(
            drafter() if drafter else drafts[name],
            request,
            draft_length=length,
            drafting=name != "none",
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
    for length in range(1, 9):
        answer = home.answer(
            drafts["cpu-int8"],
            Request(prompt, 24, stops=("never", stop)),
            draft_length=length,
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
    loops = [home.device(d, drafting=d.name != "none") for d in drafters]
    answers = home.together(loops, requests)
    assert [answer.stats.token_ids for answer in answers] == expected


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
