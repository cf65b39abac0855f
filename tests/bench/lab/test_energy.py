"""Joules a token in the benches."""

from __future__ import annotations

import json

import pytest
from click.testing import CliRunner

from bench.lab.energy import device_options, each_token, note
from cli.main import main
from edgespec.energy_report import Energy
from tests.engines.machine.energy import trees


def energy(**changes):
    values = {"joules": 12.0, "seconds": 3.0, "tokens": 24, "covers": "whole module (INA3221)"}
    return Energy(**{**values, **changes})


def test_a_cell_says_what_is_not_measured_and_what_is_a_bound():
    assert each_token(None) == "not measured"
    assert each_token(energy(joules=None)) == "not measured"
    assert each_token(energy()) == "0.5"
    assert each_token(energy(unmeasured_seconds=1.0)) == "at least 0.5"
    assert each_token(energy(tokens=0)) == "not measured"


def test_the_note_names_what_was_measured_and_who_was_slowed():
    quiet, hot = energy(throttled=False), energy(throttled=True, throttling={"too hot": 2})
    text = note({"cloud": quiet, "edgespec": hot})
    assert "energy: whole module (INA3221), device and cloud together" in text
    assert text.endswith("throttled: too hot (2 times) (during: edgespec)")
    none = energy(joules=None, why=["no sensor"])
    assert "energy: not measured: no sensor" in note({"cloud": none, "edgespec": none})


def test_devices_are_told_whose_sensors(tmp_path):
    assert device_options(None) == []
    assert device_options(tmp_path) == ["--energy", "--sensors", str(tmp_path)]


@pytest.mark.parametrize(("tree", "watts"), [(trees.ORIN, 8.0), (trees.PI4, None)])
def test_every_method_over_a_link(tiny_bundle, tmp_path, tree, watts):
    root = trees.record(tmp_path / "tree", tree)
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text('{"prompt": "the quick", "category": "chat"}\n')
    done = CliRunner().invoke(
        main,
        ["bench", "link", str(tiny_bundle.folder), "--rtt", "0", "--max-tokens", "12", "--prompts",
         str(prompts), "--method", "edgespec", "--energy", "--sensors", str(root), "--json"],
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    cells = json.loads(done.stdout.splitlines()[-1])["cells"]
    assert [cell["method"] for cell in cells] == ["cloud", "edgespec"]
    for cell in cells:
        measured = cell["energy"]
        assert measured["tokens"] == 12
        assert measured["watts"] == (watts and pytest.approx(watts, rel=0.01))
        assert measured["measured"] == (watts is not None)
    words = "whole module (INA3221), device" if watts else "4 Model B Rev 1.5 has no power sensor"
    assert words in done.stdout
    assert ("not measured" in done.stdout) == (watts is None)
