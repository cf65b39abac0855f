"""`distill --depth all`: the same copy as `quantise TARGET --target TARGET`, by the same code.

The corpus is written first, as for a shallower draft."""

import json

import pytest
from click.testing import CliRunner

from cli.main import main


def run(*arguments):
    result = CliRunner().invoke(main, list(map(str, arguments)))
    assert result.exit_code == 0, result.output
    return result.stderr


def test_it_is_what_quantise_makes_of_the_target(tiny_llama_folder, tmp_path):
    made, copied, corpus = tmp_path / "made", tmp_path / "copied", tmp_path / "corpus"
    common = (tiny_llama_folder, "--corpus", corpus, "--hours", 1, "--device", "cpu")
    said = run("distill", *common, "--depth", "all", "--tokens", 1500, "--steps", 2, "-o", made)
    run("quantise", *common, "--target", tiny_llama_folder, "--recovery", 2, "-o", copied)
    weights = [(folder / "model.safetensors").read_bytes() for folder in (made, copied)]
    assert weights[0] == weights[1]
    config = json.loads((made / "config.json").read_text())
    assert config["num_hidden_layers"] == 3 and "shares_embedding_of" in config["edgespec"]
    assert "needs no training and no file: edgespec export TARGET --draft self" in said
    assert f"next: edgespec export TARGET --draft {made} --profile cpu-int4" in said
    assert sorted(path.name for path in tmp_path.iterdir()) == ["copied", "corpus", "made"]


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--layers", "0,1"], "--layers is for a draft of fewer layers"),
        (["--batch-tokens", "512"], "--batch-tokens is for a draft of fewer layers"),
        (["--rate", "0.001"], "--rate is for a draft of fewer layers"),
        (["--vocabulary", "80"], "--vocabulary is for a draft of fewer layers"),
        (["--prompts", "/nowhere/at/all"], "there is no /nowhere/at/all"),
        (["--device", "cuda"], "no CUDA device"),
    ],
)
def test_bad_input_is_one_sentence(tiny_llama_folder, tmp_path, options, says):
    command = ["distill", str(tiny_llama_folder), "-o", str(tmp_path / "d"), "--depth", "all"]
    result = CliRunner().invoke(main, [*command, "--corpus", str(tmp_path / "c"), *options])
    assert result.exit_code == 2 and says in result.stderr, result.output
    assert not list(tmp_path.iterdir())


def test_a_depth_is_a_number_or_all(tiny_llama_folder, tmp_path):
    command = ["distill", str(tiny_llama_folder), "-o", str(tmp_path / "d"), "--depth"]
    for depth in ("most", "-1"):
        assert CliRunner().invoke(main, [*command, depth]).exit_code == 2
