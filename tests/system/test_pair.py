"""Any target becomes a pair: distil, quantise, export and calibrate, by the commands of the README.

The target is a Qwen3 of random weights, which nobody has tuned anything for.
"""

import json
import shutil

import pytest
from click.testing import CliRunner

from bench.lab.builtin import SMALL, STRONG, builtin_bundle, pair_folder, weights_file
from cli.main import main
from edgespec.config import Request
from edgespec.errors import EdgespecError
from edgespec.manifest import Bundle
from edgespec.sampling import Sampling
from engines.drafters.model import ModelDrafter
from engines.onnxruntime_backend.engine import OrtSettings, load_draft, load_target


def run(*command):
    result = CliRunner().invoke(main, [str(word) for word in command])
    assert result.exit_code == 0, f"{command}\n{result.output}\n{result.exception!r}"
    return result


@pytest.fixture(scope="module")
def qwen3(tiny_llama_folder, tmp_path_factory):
    import torch
    import transformers

    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("pair") / "qwen3"
    config = transformers.Qwen3Config(
        vocab_size=300,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=32,
        max_position_embeddings=512,
        initializer_range=0.2,
        tie_word_embeddings=True,
    )
    transformers.Qwen3ForCausalLM(config).save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(tiny_llama_folder / name, folder)
    return folder


def test_a_random_qwen3_becomes_a_pair(qwen3, tmp_path):
    draft, packed, bundle = tmp_path / "draft", tmp_path / "draft-int4", tmp_path / "bundle"
    text = ("--corpus", tmp_path / "corpus")
    training = ("--tokens", 4000, "--steps", 10, "--batch-tokens", 512)
    run("distill", qwen3, "--out", draft, "--depth", 3, *training, *text)
    run("quantise", draft, "--target", qwen3, "--out", packed, "--tokens", 2000, *text)
    assert not (packed / "tokenizer.json").exists(), "it is the target's"
    profiles = ("--profile", "cpu-int4", "--profile", "cpu-fp32")
    run("export", qwen3, "--draft", packed, *profiles, "--split", "2,3", "--out", bundle)
    plain = Bundle.open(bundle).manifest

    run("calibrate", qwen3, "--bundle", bundle, "--tokens", 2000, *text)
    manifest = Bundle.open(bundle).manifest
    Bundle.open(bundle).check()
    assert [s.end for s in manifest.target.segments if s.calibration] == [2, 3]
    assert all(draft.calibration for draft in manifest.drafts.values())
    assert manifest.target_fingerprint == plain.target_fingerprint, "exits never change the text"

    prompts = tmp_path / "prompts.jsonl"
    lines = [{"prompt": p, "category": c} for p, c in (("the dog", "a"), ("fox jumps", "b"))]
    prompts.write_text("".join(json.dumps(line) + "\n" for line in lines))
    options = ("--prompts", prompts, "--max-tokens", 12, "--json")
    measured = run("bench", "acceptance", bundle, *options)
    figures = json.loads(measured.output.splitlines()[-1])
    assert set(figures["agreement_by_category"]) == {"a", "b"}
    assert len(figures["accepted_per_round"]) == 8
    assert [e["layer"] for e in figures["exits"]] == [2, 3]


def test_a_trimmed_draft_never_changes_the_answer(qwen3, tmp_path, house):
    """Greedy and sampled, also where the target's word is none that the draft kept."""
    draft, bundle = tmp_path / "draft", tmp_path / "bundle"
    text = ("--corpus", tmp_path / "corpus")
    training = ("--tokens", 1500, "--steps", 2, "--batch-tokens", 512)
    run("distill", qwen3, "--out", draft, "--depth", 2, "--vocabulary", 128, *training, *text)
    run("export", qwen3, "--draft", draft, "--split", "2", "--out", bundle)
    opened = Bundle.open(bundle)
    assert opened.draft("cpu-int8").vocabulary == 128
    target = load_target(opened, OrtSettings(1, slots=4))
    one_row = OrtSettings(1, slots=1, min_tokens=1)
    drafter = ModelDrafter(load_draft(opened, "cpu-int8", one_row), "trimmed")
    here = house(target)
    for sampling in (Sampling(), Sampling(1.0, seed=3)):
        request = Request((5, 9, 40), 30, sampling)
        assert here.answer(drafter, request).state.answer == here.alone(request)


def test_the_built_in_pair_is_small_calibrated_and_agrees(tmp_path):
    """What ships, as it ships: sizes on disk, figures in the manifest, and some of them again."""
    try:
        weights_file()
    except EdgespecError as error:
        pytest.skip(str(error))
    pair = pair_folder()
    draft = sum(path.stat().st_size for path in (pair / "draft").iterdir())
    assert draft <= 40e6 and (pair / "exit-heads.safetensors").stat().st_size <= 6e6
    manifest = builtin_bundle().manifest
    figures = [draft.calibration for draft in manifest.drafts.values()]
    figures += [s.calibration for s in manifest.target.segments if s.exit]
    assert len(figures) == 4 and all(one and one.error <= 0.05 for one in figures)
    few = ("--limit", 1, "--max-tokens", 48, "--temperature", 0, "--json")
    for profile, least in ((STRONG, 0.9), (SMALL, 0.55)):
        output = run("bench", "acceptance", *few, "--drafter", profile).output
        measured = json.loads(output.splitlines()[-1])
        assert measured["agreement"] >= least
        assert measured["agreement"] > measured["exits"][0]["agreement"] > 0.3
