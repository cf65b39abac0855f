"""`edgespec bench acceptance` on a tiny pair, and its rounds against ones worked out by hand."""

from __future__ import annotations

import importlib.util
import json

import numpy as np
import pytest
from click.testing import CliRunner

from bench.acceptance.lockstep_rounds import LENGTHS, accepted, ngram_accepted, ngram_matches
from bench.acceptance.teacher_forcing import TargetAnswer, teacher_force, write_answers
from cli.main import main
from edgespec.sampling import Sampling
from engines.alone import write_alone
from engines.drafters.base import draft_tokens
from engines.drafters.model import ModelDrafter
from engines.onnxruntime_backend.engine import OrtSettings, load_draft, load_target

GREEDY = Sampling()
SAMPLED = Sampling(0.9, 0.9, seed=3)
PROMPTS = [
    ("the quick brown fox", "animals"),
    ("jumps over", "animals"),
    ("the lazy dog " * 30, "long"),
]


@pytest.mark.parametrize(
    ("matches", "length", "rounds"),
    [
        ([], 3, []),
        ([0], 3, [0]),
        ([1], 3, [1]),
        ([0, 0, 0], 1, [0, 0, 0]),
        ([1, 1, 1, 1], 1, [1, 1]),  # the token after an accepted one is the target's own
        ([1, 1, 0, 1, 1, 1], 2, [2, 2]),
        ([1, 1, 0, 1, 1, 1], 4, [2, 3]),
        ([1, 0, 1, 1, 1, 1, 1, 0], 3, [1, 3, 1]),
        ([1, 1, 1, 1, 1, 0, 1], 8, [5, 1]),
    ],
)
def test_rounds_by_hand(matches, length, rounds):
    assert accepted([bool(match) for match in matches], length) == rounds


def test_prompt_lookup_by_hand():
    prompt = [1, 2, 3, 4, 5, 1, 2]
    answer = [3, 4, 9, 1, 2, 3]
    # After "1 2" comes 3, after "2 3" 4, after "3 4" 5; then "4 9", "9 1" are new, "1 2" is not.
    assert ngram_matches(prompt, answer) == [True, True, False, False, False, True]
    assert ngram_accepted(prompt, answer, 2) == [2, 0, 0, 1]
    assert ngram_accepted(prompt, answer, 1) == [1, 0, 0, 0, 1]


@pytest.fixture(scope="module")
def target(tiny_bundle):
    return load_target(tiny_bundle, OrtSettings(slots=17))


def test_answers_are_the_ones_that_the_target_writes_alone(target):
    prompts = [[5 + number, 7, 9 * number + 2] * (1 + 20 * number) for number in range(5)]
    ends = {1, 30, 31, 32, 33}
    expected = {
        (number, index): write_alone(target, prompt, 20, sampling, ends)
        for number, prompt in enumerate(prompts)
        for index, sampling in enumerate((GREEDY, SAMPLED))
    }
    written = {
        (answer.prompt_number, answer.sampling_number): answer.tokens
        for answer, _ in write_answers(target, prompts, lambda number: (GREEDY, SAMPLED), 20, ends)
    }
    assert written == expected


@pytest.mark.parametrize("sampling", [GREEDY, SAMPLED])
def test_rounds_of_a_teacher_forced_draft_are_those_of_a_real_one(tiny_bundle, target, sampling):
    prompt = list(range(40, 60))
    tokens = write_alone(target, prompt, 150, sampling)
    draft = load_draft(tiny_bundle, "cpu-int8", OrtSettings(slots=2, min_tokens=2))
    (guesses,) = teacher_force(
        draft, draft.open(), TargetAnswer(0, 0, prompt, tokens, sampling), {}
    ).values()
    drafter = ModelDrafter(draft, "cpu-int8")
    rounds, done = [], 0
    while done < len(tokens):
        drafted = draft_tokens(drafter, prompt + tokens[:done], 4, sampling)
        right = 0
        while right < 4 and done + right < len(tokens) and drafted[right] == tokens[done + right]:
            right += 1
        rounds.append(right)
        done += right + 1
    assert accepted(guesses.right.tolist(), 4) == rounds
    assert 0 < guesses.right.mean() < 1, "nothing to tell apart"


def test_the_target_led_along_its_own_answer_is_always_right(tiny_bundle, target):
    prompt = list(range(90, 100))
    tokens = write_alone(target, prompt, 140, SAMPLED)
    answer = TargetAnswer(0, 0, prompt, tokens, SAMPLED)
    (itself,) = teacher_force(target, target.open(), answer, {}).values()
    assert itself.right.all() and len(itself.right) == 140
    assert 0 < itself.likeliest.mean() < 1
    exits = teacher_force(target, target.open(), answer, {}, hints=True)
    assert list(exits) == tiny_bundle.manifest.target.exits
    assert all(len(guesses.right) == 140 and guesses.right.mean() < 1 for guesses in exits.values())
    assert all(np.all((h.confidences > 0) & (h.confidences < 1)) for h in exits.values())


@pytest.fixture
def prompts(tmp_path):
    path = tmp_path / "prompts.jsonl"
    lines = [json.dumps({"prompt": text, "category": kind}) for text, kind in PROMPTS]
    path.write_text("\n".join([*lines, ""]))
    return path


def invoke(*arguments):
    return CliRunner().invoke(main, ["bench", "acceptance", *map(str, arguments)])


def measure(*arguments):
    result = invoke(*arguments, "--json")
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout.splitlines()[-1])


def test_figures_of_a_perfect_draft(tiny_bundle, prompts):
    figures = measure(tiny_bundle.folder, "--prompts", prompts, "--max-tokens", 18)
    assert figures["drafter"] == "cpu-fp32" and figures["prompts"] == 3
    for answers in (figures, figures["sampled"]):
        assert answers["agreement"] == 1.0
        assert answers["agreement_by_category"] == {"animals": 1.0, "long": 1.0}
        assert answers["accepted_per_round"][0] == 1.0
        assert 0 <= answers["calibration_error"] <= 1
        assert [exit["layer"] for exit in answers["exits"]] == tiny_bundle.manifest.target.exits
    assert figures["sampling"]["temperature"] == 0
    assert figures["sampled"]["sampling"] == {"temperature": 0.7, "top_p": 0.9}
    assert len(figures["accepted_per_round"]) == len(LENGTHS)
    if figures["tokens"] == 54:  # no end-of-text: two rounds of nine tokens in each answer
        assert figures["accepted_per_round"][7] == 8.0
        assert figures["tokens_per_round"][7] == 9.0
    ratio = figures["draft_step_ms"] / figures["target_step_ms"]
    assert figures["step_ratio"] == pytest.approx(ratio, rel=0.1)
    assert figures["machine"]["cores"]


def test_options(tiny_bundle, prompts):
    options = ["--prompts", prompts, "--max-tokens", 6, "--limit", 1, "--temperature", "1.5"]
    figures = measure(tiny_bundle.folder, *options, "--drafter", "ngram", "--no-exits")
    assert figures["prompts"] == 2 and "sampled" not in figures and figures["exits"] == []
    assert figures["sampling"] == {"temperature": 1.5, "top_p": 0.9}
    assert figures["calibration_error"] is None
    assert 0 <= figures["agreement"] < 1


def test_a_plot(tiny_bundle, prompts, tmp_path):
    pytest.importorskip("matplotlib")
    path = tmp_path / "plot.png"
    measure(tiny_bundle.folder, "--prompts", prompts, "--max-tokens", 4, "--plot", path)
    assert path.read_bytes().startswith(b"\x89PNG")


def refused(code, words, *arguments):
    result = invoke(*arguments)
    assert result.exit_code == code, result.output
    assert words in " ".join(result.stderr.split()), result.stderr
    assert result.stderr.count("\n") == 1


GOOD = json.dumps({"prompt": "hello", "category": "chat"})


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "is empty"),
        ("\n \n", "is empty"),
        (f"{GOOD}\nhello\n", "line 2 is not JSON"),
        (f"{GOOD}\n\n[1]\n", "line 3 is no JSON object"),
        ('{"category": "chat"}', "line 1 has no prompt"),
        ('{"prompt": " ", "category": "chat"}', "line 1 has no prompt"),
        ('{"prompt": "hello"}', "line 1 has no category"),
        ('{"prompt": "hello", "category": 3}', "line 1 has no category"),
        (json.dumps({"prompt": "word " * 600, "category": "chat"}), "line 1 has"),
    ],
)
def test_bad_prompts(tiny_bundle, tmp_path, text, words):
    path = tmp_path / "bad.jsonl"
    path.write_text(text)
    refused(2, f"{path}", tiny_bundle.folder, "--prompts", path)
    refused(2, words, tiny_bundle.folder, "--prompts", path)


def test_bad_requests(tiny_bundle, prompts, tmp_path, monkeypatch):
    ask = [tiny_bundle.folder, "--prompts", prompts]
    refused(2, "there is no file", tiny_bundle.folder, "--prompts", tmp_path / "none")
    refused(2, "cannot be read", tiny_bundle.folder, "--prompts", tmp_path)
    (tmp_path / "latin").write_bytes(b"\xe9\xe8")
    refused(2, "UTF-8", tiny_bundle.folder, "--prompts", tmp_path / "latin")
    refused(2, "no draft for profile 'x'", *ask, "--drafter", "x")
    refused(2, "temperature is -1", *ask, "--temperature", "-1")
    refused(2, "is no file in a folder", *ask, "--plot", tmp_path / "none" / "a.png")
    refused(2, "no training text", *ask, "--training", tmp_path)
    refused(2, "there is no bundle", tmp_path / "none")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    refused(1, "extra 'plots'", *ask, "--plot", tmp_path / "a.png")


def test_a_bundle_without_a_draft(tmp_path, tiny_llama_folder):
    from export.bundle import ExportSettings, export

    export(ExportSettings(target=str(tiny_llama_folder), out=tmp_path / "bundle"))
    refused(2, "has no draft", tmp_path / "bundle")
