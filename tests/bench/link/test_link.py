"""`edgespec bench link`, small: real processes, a link between them, every method the same text."""

import json

import pytest
from click.testing import CliRunner

from bench.lab.methods import METHODS, Method
from bench.lab.useless import UselessDrafter
from bench.link.settings import LinkSettings
from cli.main import main
from edgespec.errors import UsageError
from edgespec.sampling import Sampling
from engines.drafters.base import DraftRequest
from engines.drafters.model import ModelDrafter
from engines.toy import ToyEngine


def test_methods_distances_tables_and_plots(tmp_path):
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text('{"prompt": "Name three planets.", "category": "chat"}\n')
    done = CliRunner().invoke(
        main,
        ["bench", "link", "--rtt", "0,30", "--max-tokens", "10", "--prompts", str(prompts),
         "--useless", "--plot", str(tmp_path / "plots"), "--json"],
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    figures = json.loads(done.stdout.splitlines()[-1])
    assert set(figures["tokens_per_s"]) == {"0", "30"}
    assert set(figures["tokens_per_s"]["0"]) == {*METHODS, "useless draft"}
    assert figures["worst_ratio_to_cloud"] > 0
    cells = {(cell["rtt_ms"], cell["method"]): cell for cell in figures["cells"]}
    assert cells[30, "cloud"]["first_token_ms"] >= 30
    assert cells[0, "cloud"]["steps_per_token"] == 1
    assert (
        cells[0, "cloud-draft"]["bytes_up_per_token"] < cells[0, "lockstep"]["bytes_up_per_token"]
    )
    assert figures["times"]["target_ms"] > 0 and figures["times"]["cloud_draft_ms"] > 0
    assert (tmp_path / "plots" / "link.png").stat().st_size > 10_000
    assert (tmp_path / "plots" / "timeline.png").stat().st_size > 10_000
    events = json.loads((tmp_path / "plots" / "trace.json").read_text())["traceEvents"]
    assert {"draft", "verify", "decode"} <= {event["name"] for event in events}


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--rtt", "ten"], "--rtt is a list"),
        (["--rtt", "-1"], "rtt"),
        (["--method", "magic"], "there is no method 'magic'"),
        (["--jitter", "nan"], "jitter"),
    ],
)
def test_bad_input_is_one_sentence(options, words):
    done = CliRunner().invoke(main, ["bench", "link", *options])
    assert done.exit_code == 2
    assert words in done.output
    assert "Traceback" not in done.output


def test_a_useless_draft_is_never_right():
    right, wrong = (ModelDrafter(ToyEngine(), "toy") for _ in range(2))
    text = [1, 2, 3]
    for _ in range(20):
        request = DraftRequest(0, text, Sampling())
        (good,) = right.guess([request])
        (bad,) = UselessDrafter(wrong).guess([request])
        assert bad.token != good.token and bad.confidence == good.confidence
        text.append(good.token)


def test_methods_that_are_asked_for_come_with_the_cloud_alone():
    chosen = LinkSettings(methods=("edgespec", "lockstep")).chosen
    assert list(chosen) == ["cloud", "edgespec", "lockstep"]
    assert isinstance(chosen["edgespec"], Method)
    with pytest.raises(UsageError, match="choose from"):
        _ = LinkSettings(methods=("theirs",)).chosen
