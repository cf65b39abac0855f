"""`edgespec choose` on a tiny target: what it measures, and commands that make what it chose."""

import json
import shlex

import pytest
import torch
from click.testing import CliRunner

from calibration.decoder import load
from calibration.target import prepare
from cli.main import main
from edgespec.manifest import Bundle
from export.sources.open import open_checkpoint


@pytest.fixture(scope="module")
def corpus(tiny_llama_folder, tmp_path_factory):
    target = open_checkpoint(str(tiny_llama_folder))
    folder = tmp_path_factory.mktemp("choice") / "c"
    prepare(target, load(target), folder, None, 1500, 0, torch.device("cpu"))
    return folder


@pytest.fixture
def choose(tiny_llama_folder, corpus):
    def invoke(*options):
        words = ["choose", tiny_llama_folder, "--corpus", corpus, "--tokens", 1500, "-t", 1]
        result = CliRunner().invoke(main, [str(word) for word in (*words, *options)])
        assert result.exit_code == 0, result.output
        return result.stdout

    return invoke


def test_everything_is_measured_and_explained(choose):
    said = choose("--rtt", "0,20", "--json")
    found = json.loads(said.splitlines()[-1])
    by_name = {each["draft"]["name"]: each for each in found["drafts"]}
    assert set(by_name) == {"int8 copy", "int4 copy", "int4 copy, trained", "1 layers", "2 layers"}
    shown = said.split("~ estimated")[0]
    assert all(name in shown for name in by_name) and "…" not in shown  # nothing is cut off
    assert found["left_out"] == [] and set(found["times"]["batch_ms"]) == {"1", "2", "3", "5", "9"}
    drafts = {name: each["draft"] for name, each in by_name.items()}
    assert all(draft["step_ms"] > 0 for draft in drafts.values())
    # Measured on the target's own text, which a copy at int8 nearly always predicts.
    assert 1 >= drafts["int8 copy"]["agreement"] > drafts["int4 copy"]["agreement"] > 0.2
    assert drafts["int8 copy"]["estimate"] == drafts["int4 copy"]["estimate"] == ""
    assert (
        drafts["1 layers"]["estimate"] == drafts["2 layers"]["estimate"] == "the curve of SmolLM2"
    )
    assert drafts["1 layers"]["agreement"] < drafts["2 layers"]["agreement"]
    assert drafts["1 layers"]["disk_bytes"] < drafts["2 layers"]["disk_bytes"]
    assert all(len(each["tokens_per_s"]) == 2 for each in by_name.values())
    assert len(found["reasons"]) == 3 and all(f". {line}" in said for line in found["reasons"])
    assert found["machine"]["cores"] > 0 and found["load_average"] >= 0


def test_a_described_cloud_and_the_commands(choose, tmp_path, monkeypatch):
    found = json.loads(choose("--target-ms", "500,1", "--depths", "1", "--json").splitlines()[-1])
    assert (
        found["times"]["step_ms"] == 500 and found["chosen"] == found["drafts"][0]["draft"]["name"]
    )
    copy = next(e["draft"] for e in found["drafts"] if e["draft"]["name"] == "int4 copy")
    monkeypatch.chdir(tmp_path)
    (command,) = copy["commands"]
    assert CliRunner().invoke(main, shlex.split(command)[1:]).exit_code == 0
    bundle = Bundle.open(tmp_path / "bundle")
    assert list(bundle.manifest.drafts) == ["cpu-int4"]
    sizes = {path: file.size for path, file in bundle.manifest.files.items()}
    kept = sum(n for path, n in sizes.items() if path.startswith(("draft/", "tokenizer/")))
    assert copy["disk_bytes"] == kept


def test_a_bound_leaves_out_what_exceeds_it(choose):
    options = ("--target-ms", "500,1", "--depths", "1", "--for", "cpu-int4", "--json")
    every = json.loads(choose(*options).splitlines()[-1])
    sizes = {each["draft"]["name"]: each["draft"]["disk_bytes"] for each in every["drafts"]}
    said = choose(*options, "--disk", sizes["int4 copy"])
    found = json.loads(said.splitlines()[-1])
    assert {each["draft"] for each in found["left_out"]} == {"int8 copy", "int4 copy, trained"}
    assert "left out: int8 copy (cpu-int8), " in said
    shallow = next(e["draft"] for e in found["drafts"] if e["draft"]["name"] == "1 layers")
    assert [command.split()[1] for command in shallow["commands"]] == [
        "distill", "quantise", "export",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--for", "abacus"], "there is no profile 'abacus'"),
        (["--for", "jetson-orin"], "--for jetson-orin: a draft for it runs as a TensorRT engine"),
        (["--rtt", "far"], "--rtt is a list of milliseconds"),
        (["--rtt", ""], "--rtt is a list of milliseconds"),
        (["--rtt", "-1"], "an RTT of -1 ms"),
        (["--depths", "3"], "--depths 3 is none of 1 to 2"),
        (["--depths", "0"], "--depths is a list of numbers of layers"),
        (["--target-ms", "20"], "--target-ms is the time of one token"),
        (["--target-ms", "0,1"], "--target-ms is the time of one token"),
        (["--shapes", "/nowhere/at/all"], "/nowhere/at/all cannot be read"),
        (["--disk", "1", "--target-ms", "20,1", "--depths", "1"], "no draft of "),
    ],
)
def test_bad_input_is_one_sentence(tiny_llama_folder, corpus, options, says):
    words = ["choose", str(tiny_llama_folder), "--corpus", str(corpus), "--tokens", "1500"]
    result = CliRunner().invoke(main, [*words, *options])
    assert result.exit_code == 2, result.output
    sentences = [line for line in result.stderr.splitlines() if line.startswith("edgespec: ")]
    assert len(sentences) == 1 and says in sentences[0] and result.stdout == ""
