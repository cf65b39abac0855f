"""`edgespec export --check`: what transformers says of a bundle, right and wrong."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from safetensors.numpy import load_file, save_file

from cli.main import main
from edgespec.errors import CheckpointError, EdgespecError
from edgespec.manifest import Bundle
from engines.machine.profiles import precisions
from export.bundle import ExportSettings, export
from export.check import CONTINUATION_TOKENS, PROMPTS, check

LAST = re.compile(r"largest logit difference (\S+), greedy agreement (\S+)% over (\d+) tokens")


def figures(shown: str) -> tuple[float, float, int]:
    match = LAST.fullmatch(shown.splitlines()[-1])
    assert match is not None, shown
    return float(match[1]), float(match[2]), int(match[3])


@pytest.fixture
def other(tiny_llama_folder: Path, tmp_path: Path) -> Path:
    """The tiny Llama with its values negated in one layer: same shapes, other text."""
    folder = shutil.copytree(tiny_llama_folder, tmp_path / "other")
    weights = load_file(folder / "model.safetensors")
    name = "model.layers.1.mlp.down_proj.weight"
    save_file({**weights, name: -weights[name]}, folder / "model.safetensors", {"format": "pt"})
    return folder


def test_passes(
    tiny_bundle: Bundle, tiny_llama_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    check(tiny_bundle, ExportSettings(target=str(tiny_llama_folder), out=tiny_bundle.folder))
    out, err = capsys.readouterr()
    difference, agreement, tokens = figures(out)
    assert difference < 1e-4
    assert (agreement, tokens) == (100.0, CONTINUATION_TOKENS * len(PROMPTS))
    assert "draft cpu-fp32: 100.0% of the target's greedy tokens" in out
    [share] = re.findall(r"draft cpu-int8: (\S+)% of", out)
    assert 50 < float(share) <= 100
    assert out.count("32/32") == len(PROMPTS)
    assert err == ""


def test_another_model_fails(
    tiny_bundle: Bundle, other: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = ExportSettings(target=str(other), out=tiny_bundle.folder)
    with pytest.raises(EdgespecError, match="writes other tokens than transformers"):
        check(tiny_bundle, settings)
    difference, agreement, _ = figures(capsys.readouterr().out)
    assert difference > 1e-2
    assert agreement < 99


def test_a_quantised_target_is_measured_and_not_judged(
    tiny_llama_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = ExportSettings(
        target=str(tiny_llama_folder), out=tmp_path / "bundle", precisions=precisions("int4")
    )
    check(export(settings), settings)
    difference, agreement, _ = figures(capsys.readouterr().out)
    assert difference > 1e-2
    assert agreement < 100


def test_logits_that_are_not_finite_fail(tiny_llama_folder: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(tiny_llama_folder, tmp_path / "broken")
    weights = load_file(folder / "model.safetensors")
    weights["model.norm.weight"] = np.full_like(weights["model.norm.weight"], 1e38)
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    bundle = export(ExportSettings(target=str(folder), out=tmp_path / "bundle"))
    settings = ExportSettings(target=str(tiny_llama_folder), out=tmp_path / "bundle")
    with pytest.raises(EdgespecError, match="not finite"):
        check(bundle, settings)


def test_a_short_context_is_enough(tiny_llama_folder: Path, tmp_path: Path) -> None:
    settings = ExportSettings(target=str(tiny_llama_folder), out=tmp_path / "bundle", context=8)
    check(export(settings), settings)


def test_a_source_that_is_gone_is_one_sentence(tiny_bundle: Bundle, tmp_path: Path) -> None:
    settings = ExportSettings(target=str(tmp_path / "gone"), out=tiny_bundle.folder)
    with pytest.raises(CheckpointError, match=r"^transformers cannot load .*gone"):
        check(tiny_bundle, settings)


def test_another_vocabulary_is_refused(
    tiny_bundle: Bundle, tiny_llama_folder: Path, tmp_path: Path
) -> None:
    folder = shutil.copytree(tiny_llama_folder, tmp_path / "wide")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "vocab_size": 320}))
    weights = load_file(folder / "model.safetensors")
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        weights[name] = np.pad(weights[name], ((0, 20), (0, 0)))
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(EdgespecError, match="vocabulary of 320"):
        check(tiny_bundle, ExportSettings(target=str(folder), out=tiny_bundle.folder))


def test_command(tiny_llama_folder: Path, tmp_path: Path) -> None:
    command = ["export", str(tiny_llama_folder), "--out", str(tmp_path / "b"), "--check"]
    result = CliRunner().invoke(main, command)
    assert result.exit_code == 0, result.output
    assert figures(result.stdout)[1] == 100.0


def test_what_a_quantised_target_costs_is_printed_and_kept(tiny_llama_folder, tmp_path):
    command = ["export", str(tiny_llama_folder), "--out", str(tmp_path / "b"), "--precision"]
    result = CliRunner().invoke(main, [*command, "int4"])
    assert result.exit_code == 0 and "not measured" in result.stderr
    assert Bundle.open(tmp_path / "b").manifest.target.agreement is None
    result = CliRunner().invoke(main, [*command, "int4", "--check", "--force"])
    assert result.exit_code == 0, result.output
    agreement = Bundle.open(tmp_path / "b").manifest.target.agreement
    assert agreement is not None and 0.2 < agreement < 1
    assert f"greedy agreement {100 * agreement:.1f}%" in result.output
    Bundle.open(tmp_path / "b").check()
