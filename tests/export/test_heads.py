"""Trained exit heads: their file, their graphs, and putting them into a bundle that is there."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import onnx_ir as ir
import pytest
import torch
import transformers
from click.testing import CliRunner
from safetensors.numpy import load_file, save_file
from torch.nn import functional

from cli.bundle_view import inspect
from cli.main import main
from edgespec.errors import BundleError, CheckpointError, UsageError
from edgespec.manifest import Bundle, Calibration
from edgespec.sampling import Sampling
from engines.alone import write_alone
from engines.base import Row
from engines.machine.profiles import precisions
from engines.onnxruntime_backend.engine import OrtSettings, load_target
from export.bundle import ExportSettings, export
from export.heads import read_heads
from export.install import install

FIGURES = {"agreement": 0.61, "slope": 1.2, "offset": -0.3, "error": 0.02, "tokens": 1000}
IDS = list(range(10, 40))


def write_heads(
    path: Path, layers: tuple[int, ...] = (1, 2), dtype: Any = np.float32, **notes: object
) -> Path:
    """Adapters of rank 8 with random weights, for `tiny_llama_folder`."""
    random, tensors = np.random.default_rng(0), {}
    for layer in layers:
        tensors[f"exit.{layer}.norm.weight"] = 1 + random.standard_normal(64) / 4
        tensors[f"exit.{layer}.down.weight"] = random.standard_normal((8, 64))
        tensors[f"exit.{layer}.up.weight"] = random.standard_normal((64, 8))
    figures = {str(layer): FIGURES for layer in layers}
    said = {"target": "tiny", "hidden": 64, "layers": 3, "calibration": figures, **notes}
    stored = {name: values.astype(dtype) for name, values in tensors.items()}
    save_file(stored, path, metadata={"edgespec": json.dumps(said)})
    return path


@pytest.fixture
def heads(tmp_path: Path) -> Path:
    return write_heads(tmp_path / "exit-heads.safetensors")


@pytest.fixture
def bundle(tiny_bundle: Bundle, tmp_path: Path) -> Bundle:
    return Bundle.open(shutil.copytree(tiny_bundle.folder, tmp_path / "bundle"))


def exits(bundle: Bundle) -> dict[int, np.ndarray]:
    """Logits of every exit head."""
    engine = load_target(bundle, OrtSettings())
    steps = engine.run([Row(engine.open(), 0, IDS, len(IDS), hints=True)])
    return {step.layer: step.choices[0].logits for step in steps if step.choices[0] is not None}


def expected(folder: Path, heads: Path, trained: tuple[int, ...]) -> dict[int, np.ndarray]:
    model = transformers.AutoModelForCausalLM.from_pretrained(folder).eval()
    tensors = {name: torch.from_numpy(v).float() for name, v in load_file(heads).items()}
    with torch.no_grad():
        states = model(torch.tensor([IDS]), output_hidden_states=True).hidden_states
        logits = {}
        for layer in (1, 2):
            h = states[layer]
            if layer in trained:
                norm, down, up = (
                    tensors[f"exit.{layer}.{p}.weight"] for p in ("norm", "down", "up")
                )
                normed = functional.rms_norm(h, (64,), norm, model.config.rms_norm_eps)
                h = h + functional.silu(normed @ down.T) @ up.T
            logits[layer] = model.lm_head(model.model.norm(h))[0].numpy()
    return logits


def assert_close(actual: dict[int, np.ndarray], wanted: dict[int, np.ndarray], most: float) -> None:
    for layer, logits in wanted.items():
        assert np.abs(actual[layer] - logits).max() <= most


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_trained_exits_are_adapter_norm_and_head(
    tiny_llama_folder: Path, tmp_path: Path, dtype: Any
) -> None:
    heads = write_heads(tmp_path / "heads", (2,), dtype)
    settings = ExportSettings(
        str(tiny_llama_folder), tmp_path / "out", split=(1, 2), exit_heads=heads
    )
    bundle = export(settings)
    bundle.check()
    assert_close(exits(bundle), expected(tiny_llama_folder, heads, (2,)), 2e-4)
    first, second, last = bundle.manifest.target.segments
    assert (first.calibration, last.calibration) == (None, None)
    assert second.calibration == Calibration(**FIGURES)


@pytest.mark.parametrize(
    ("precision", "kind"), [("fp16", "FLOAT16"), ("int8", "FLOAT"), ("int4", "FLOAT")]
)
def test_adapters_are_floats_beside_any_weights(
    tiny_llama_folder: Path, tmp_path: Path, heads: Path, precision: str, kind: str
) -> None:
    settings = ExportSettings(
        str(tiny_llama_folder),
        tmp_path / "out",
        precisions=precisions(precision),
        segments=3,
        exit_heads=heads,
    )
    bundle = export(settings)
    graph = ir.load(bundle.path("target/exit-00.onnx")).graph
    kinds = {value.const_value.dtype.name for value in graph.initializers.values()}
    assert kinds == {kind}
    wanted = expected(tiny_llama_folder, heads, (1, 2))
    scale = np.abs(wanted[1]).max()
    error = np.abs(exits(bundle)[1] - wanted[1]).mean()
    assert error <= {"fp16": 0.01, "int8": 0.05, "int4": 0.2}[precision] * scale


def test_exit_graphs_are_standard_onnx(bundle: Bundle, heads: Path) -> None:
    import onnx

    path = install(bundle, heads, {}, None).path("target/exit-01.onnx")
    onnx.checker.check_model(str(path), full_check=True)
    assert {node.domain for node in onnx.load(path).graph.node} <= {"", "ai.onnx"}


def test_weights_too_large_for_fp16_are_named(tiny_llama_folder: Path, tmp_path: Path) -> None:
    heads = write_heads(tmp_path / "heads")
    tensors = load_file(heads)
    tensors["exit.2.up.weight"][3, 3] = 1e6
    said = {"target": "tiny", "hidden": 64, "layers": 3}
    save_file(tensors, heads, metadata={"edgespec": json.dumps(said)})
    settings = ExportSettings(
        str(tiny_llama_folder),
        tmp_path / "out",
        precisions=precisions("fp16"),
        segments=3,
        exit_heads=heads,
    )
    with pytest.raises(CheckpointError, match=r"exit\.2\.up\.weight is too large for fp16"):
        export(settings)


def test_the_command(tiny_llama_folder: Path, tmp_path: Path, heads: Path) -> None:
    out = str(tmp_path / "out")
    options = ["--out", out, "--split", "1,2", "--exit-heads", str(heads)]
    result = CliRunner().invoke(main, ["export", str(tiny_llama_folder), *options])
    assert result.exit_code == 0, result.output
    target = Bundle.open(Path(out)).manifest.target
    assert [segment.calibration is not None for segment in target.segments] == [True, True, False]
    options[-1] = str(tmp_path / "none")
    result = CliRunner().invoke(main, ["export", str(tiny_llama_folder), *options, "--force"])
    assert result.exit_code == 2
    assert "there is no file" in result.stderr and "edgespec calibrate" in result.stderr


def test_installed_is_as_exported(
    bundle: Bundle, tiny_llama_folder: Path, tmp_path: Path, heads: Path
) -> None:
    before = {name: bundle.path(name).stat().st_ino for name in bundle.manifest.files}
    measured = Calibration(agreement=0.7, slope=1.0, offset=0.0, error=0.03, tokens=5)
    new = install(bundle, heads, {"cpu-int8": measured}, 0.987)
    assert new.folder == bundle.folder
    new.check()
    exported = export(
        ExportSettings(str(tiny_llama_folder), tmp_path / "out", segments=3, exit_heads=heads)
    )
    assert_close(exits(new), exits(exported), 0.0)
    assert new.manifest.target.segments == exported.manifest.target.segments
    assert new.manifest.target.agreement == 0.987
    assert new.manifest.drafts["cpu-int8"].calibration == measured
    assert new.manifest.drafts["cpu-fp32"] == bundle.manifest.drafts["cpu-fp32"]
    assert new.manifest.default_draft == bundle.manifest.default_draft
    changed = {n for n, inode in before.items() if new.path(n).stat().st_ino != inode}
    assert changed == {"target/exit-00.onnx", "target/exit-01.onnx"}
    assert [path.name for path in new.folder.parent.glob(".*")] == []


def test_devices_and_clouds_still_agree(bundle: Bundle, heads: Path) -> None:
    prompt = [5, 6, 7]

    def text(one: Bundle) -> list[int]:
        return write_alone(load_target(one, OrtSettings()), prompt, 20, Sampling())

    old = text(bundle)
    new = install(bundle, heads, {}, None)
    assert text(new) == old
    assert new.manifest.target_fingerprint == bundle.manifest.target_fingerprint
    files = dict(new.manifest.files)
    files["target/head.data"] = files["target/head.onnx"]
    other = msgspec.structs.replace(new.manifest, files=files)
    assert other.target_fingerprint != bundle.manifest.target_fingerprint


def test_heads_replace_all_heads(bundle: Bundle, tiny_llama_folder: Path, heads: Path) -> None:
    installed = install(bundle, heads, {}, None)
    fewer = write_heads(heads.with_name("fewer"), (1,))
    again = install(installed, fewer, {}, None)
    assert_close(exits(again), expected(tiny_llama_folder, fewer, (1,)), 2e-4)
    assert again.manifest.target.segments[1].calibration is None
    fewer = write_heads(fewer, (2,))
    other = install(again, fewer, {}, None)
    assert_close(exits(other), expected(tiny_llama_folder, fewer, (2,)), 2e-4)
    kept = install(again, None, {}, 0.5)
    assert kept.manifest.target.segments == other.manifest.target.segments
    assert kept.manifest.files == other.manifest.files
    kept.check()


def test_without_hard_links_files_are_copied(
    bundle: Bundle, heads: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError("no links here")

    monkeypatch.setattr(os, "link", refuse)
    install(bundle, heads, {}, None).check()


def test_what_cannot_be_installed_leaves_the_bundle(bundle: Bundle, heads: Path) -> None:
    figures = Calibration(**FIGURES)
    with pytest.raises(UsageError, match="no draft for profile 'gpu-fp16'"):
        install(bundle, heads, {"gpu-fp16": figures}, None)
    data = bundle.path("target/exit-01.onnx")
    whole = data.read_bytes()
    data.write_bytes(whole[:-1] + b"?")
    with pytest.raises(BundleError, match=r"exit-01\.onnx is damaged"):
        install(bundle, heads, {}, None)
    data.write_bytes(whole)
    bundle.path("target/head.data").rename(bundle.folder.parent / "away")
    with pytest.raises(BundleError, match=r"head\.data is missing"):
        install(bundle, heads, {}, None)
    (bundle.folder.parent / "away").rename(bundle.path("target/head.data"))
    assert Bundle.open(bundle.folder).manifest == bundle.manifest
    bundle.check()


@pytest.mark.parametrize("notes", [{"hidden": 65}, {"layers": 4}])
def test_heads_of_another_target_are_refused(
    bundle: Bundle, tiny_llama_folder: Path, tmp_path: Path, notes: dict[str, int]
) -> None:
    heads = tmp_path / "heads"
    width = notes.get("hidden", 64)
    tensors = {
        "exit.1.norm.weight": np.ones(width, np.float32),
        "exit.1.down.weight": np.ones((4, width), np.float32),
        "exit.1.up.weight": np.ones((width, 4), np.float32),
    }
    said = {"target": "giant", "hidden": 64, "layers": 3, **notes}
    save_file(tensors, heads, metadata={"edgespec": json.dumps(said)})
    with pytest.raises(UsageError, match="exit heads of giant, with hidden size"):
        install(bundle, heads, {}, None)
    settings = ExportSettings(
        str(tiny_llama_folder), tmp_path / "out", segments=3, exit_heads=heads
    )
    with pytest.raises(UsageError, match="exit heads of giant, with hidden size"):
        export(settings)


def test_heads_at_no_border_say_where_to_cut_at_export_and_change_nothing_later(
    tiny_llama_folder: Path, tmp_path: Path, heads: Path
) -> None:
    settings = ExportSettings(str(tiny_llama_folder), tmp_path / "out", exit_heads=heads)
    with pytest.raises(UsageError, match="--split 1,2"):
        export(settings)
    whole = export(ExportSettings(str(tiny_llama_folder), tmp_path / "whole"))
    new = install(whole, heads, {}, 0.9)
    assert new.manifest.target == msgspec.structs.replace(whole.manifest.target, agreement=0.9)


@pytest.mark.parametrize(
    ("tensors", "named"),
    [
        ({"exit.1.up.weight": None}, r"lacks exit\.1\.up"),
        ({"exit.1.up.weight": np.ones((64, 7), np.float32)}, r"exit\.1\.up.* \[64, 7\]"),
        ({"exit.1.down.weight": np.ones((8, 63), np.float32)}, r"exit\.1\.down.* \[8, 63\]"),
        ({"exit.1.down.weight": np.ones(8, np.float32)}, r"exit\.1"),
        ({"exit.1.norm.weight": np.full(64, np.nan, np.float32)}, "not finite"),
        ({"exit.1.norm.weight": np.ones(64, np.int32)}, "stores .* as I32"),
        ({"exit.3.norm.weight": np.ones(64, np.float32)}, r"the tensor exit\.3\.norm"),
        ({"exit.0.norm.weight": np.ones(64, np.float32)}, r"the tensor exit\.0\.norm"),
        ({"model.norm.weight": np.ones(64, np.float32)}, r"the tensor model\.norm"),
        ({f"exit.1.{p}.weight": None for p in ("norm", "down", "up")}, "no exit head"),
    ],
)
def test_files_that_are_not_whole(
    tmp_path: Path, tensors: dict[str, np.ndarray | None], named: str
) -> None:
    path = write_heads(tmp_path / "heads", (1,))
    stored: dict[str, Any] = {**load_file(path), **tensors}
    left = {name: values for name, values in stored.items() if values is not None}
    said = {"target": "tiny", "hidden": 64, "layers": 3}
    save_file(left, path, metadata={"edgespec": json.dumps(said)})
    with pytest.raises(CheckpointError, match=named) as refused:
        read_heads(path)
    assert str(path) in str(refused.value)


@pytest.mark.parametrize(
    "notes",
    [
        {"hidden": "64"},
        {"calibration": {"one": FIGURES}},
        {"calibration": {"1": {"agreement": 0.5}}},
        {"calibration": {"2": FIGURES}},
    ],
)
def test_malformed_metadata(tmp_path: Path, notes: dict[str, object]) -> None:
    path = write_heads(tmp_path / "heads", (1,), **notes)
    with pytest.raises(CheckpointError, match="edgespec calibrate"):
        read_heads(path)


def test_other_files(tmp_path: Path, tiny_llama_folder: Path) -> None:
    with pytest.raises(CheckpointError, match="does not say which target"):
        read_heads(tiny_llama_folder / "model.safetensors")
    with pytest.raises(CheckpointError, match="truncated or not a safetensors file"):
        read_heads(tiny_llama_folder / "config.json")


def test_inspect_shows_the_figures(
    bundle: Bundle, heads: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    measured = Calibration(agreement=0.723, slope=1.0, offset=0.0, error=0.034, tokens=5)
    inspect(bundle.folder, verify=False, as_json=False)
    plain = capsys.readouterr().out
    assert "calibration error" not in plain and "head rows" not in plain
    new = install(bundle, write_heads(heads, (1,)), {"cpu-int8": measured}, 0.9871)
    inspect(new.folder, verify=False, as_json=False)
    words = " ".join(capsys.readouterr().out.split())
    assert "agreement 98.7% with the original" in words
    assert "[0, 1) target/segment-00.onnx target/exit-00.onnx 61.0% 0.020" in words
    assert "[1, 2) target/segment-01.onnx target/exit-01.onnx [2, 3)" in words
    assert "MB 72.3% 0.034 ngram" in words


def test_inspect_shows_the_rows_of_a_trimmed_head(
    tiny_llama_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    draft = shutil.copytree(tiny_llama_folder, tmp_path / "draft")
    tensors = load_file(draft / "model.safetensors")
    save_file({**tensors, "edgespec.kept_ids": np.arange(77)}, draft / "model.safetensors")
    config = json.loads((draft / "config.json").read_text())
    (draft / "config.json").write_text(json.dumps({**config, "edgespec": {"vocabulary": 77}}))
    drafts = (("cpu-fp32", "self"), ("cpu-int8", str(draft)))
    bundle = export(ExportSettings(str(tiny_llama_folder), tmp_path / "out", drafts=drafts))
    inspect(bundle.folder, verify=False, as_json=False)
    shown = capsys.readouterr().out
    assert "head rows" in shown
    assert [line.split()[-1] for line in shown.splitlines() if line.startswith("cpu-")] == [
        "300",
        "77",
    ]
