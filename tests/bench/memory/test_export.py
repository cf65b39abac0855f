"""`edgespec bench export` and `bench load`, on a model of a few kilobytes."""

import json

import numpy as np
import pytest
from click.testing import CliRunner

from bench.lab.random_checkpoint import MODELS, layer_shapes, nbytes, shards, write_checkpoint
from bench.memory import export as export_memory
from bench.memory.disk import flush
from bench.memory.export import ExportBench, MeasuredExport, _figures
from cli.main import main
from edgespec.errors import EdgespecError
from edgespec.manifest import Bundle
from engines.machine.profiles import precisions
from export.bundle import ExportSettings, export
from export.sources.folder import FolderCheckpoint

TINY = MODELS["1b"] | {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 10,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 50,
    "max_position_embeddings": 32,
}


@pytest.fixture
def tiny(monkeypatch, tmp_path):
    """The model `tiny`, and a temporary folder of its own."""
    monkeypatch.setitem(MODELS, "tiny", TINY)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    return tmp_path


def test_the_shapes_are_those_of_the_models():
    """Parameters and layers as their model cards have them."""
    totals = {name: sum(nbytes(shard) for shard in shards(MODELS[name])) / 2e9 for name in MODELS}
    assert totals == {
        "1b": pytest.approx(1.100, abs=1e-3),
        "llama-3.2-1b": pytest.approx(1.236, abs=1e-3),
        "qwen3-0.6b": pytest.approx(0.596, abs=1e-3),
        "3b": pytest.approx(3.213, abs=1e-3),
        "7b": pytest.approx(6.738, abs=1e-3),
    }
    assert nbytes(layer_shapes(MODELS["7b"])) == 404_766_720


@pytest.mark.parametrize("tied", [False, True])
def test_a_random_checkpoint_is_one(tmp_path, tied):
    written = []
    config = TINY | {"tie_word_embeddings": tied}
    write_checkpoint(tmp_path / "model", config, written.append)
    checkpoint = FolderCheckpoint(tmp_path / "model")
    assert checkpoint.architecture.layers == 10
    assert sum(written) == sum(nbytes(shard) for shard in shards(config))
    assert ("lm_head.weight" in checkpoint.names()) != tied
    rows = checkpoint.tensor("model.layers.9.mlp.down_proj.weight")
    assert rows.dtype == "float16" and 0.01 < rows.std() < 0.02
    flush(tmp_path / "model", forget=True)


def test_an_export_is_measured_and_nothing_is_left(tiny, capsys):
    settings = ExportBench("tiny", segments=2, precisions=("int8",), load=True)
    assert export_memory.run(settings, as_json=True)
    figures = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert figures["model"] == "tiny" and figures["segments"] == 2 and figures["within_limit"]
    assert 20 < figures["peak_rss_mb"]["int8"] < figures["limit_mb"] == 300
    assert figures["load"]["int8"]["segments"] == 2
    assert figures["seconds"]["int8"] > 0 and len(figures["copy_seconds"]) == 2
    assert not list(tiny.iterdir())


def test_the_peak_is_the_commands_own_and_not_its_parents():
    large = np.ones(60_000_000)  # 480 MB in this process
    used = export_memory._edgespec(["--help"])
    assert large.size and used.code == 0
    assert 5e6 < used.peak < 300e6


def test_a_full_disk_is_said_before_anything_is_written(tiny, monkeypatch):
    monkeypatch.setattr(export_memory, "_LARGEST_BUNDLE_RATIO", {"fp16": 1e12})
    with pytest.raises(EdgespecError, match=r"TMPDIR.*smaller model"):
        export_memory.run(ExportBench("tiny", precisions=("fp16",)), as_json=False)
    assert not list(tiny.iterdir())


def test_an_export_that_fails_is_said(tiny):
    with pytest.raises(EdgespecError, match=r"export .* failed with exit code 2"):
        export_memory.run(ExportBench("tiny", segments=11, precisions=("fp16",)), as_json=False)
    assert not list(tiny.iterdir())


def test_the_limit_is_three_layers_and_300_mb():
    peaks = {
        "fp16": MeasuredExport(1514.0, 1.0, 1.0, 1.0),
        "int4": MeasuredExport(1515.0, 3.0, 1.0, 1.0),
    }
    settings = ExportBench("7b")
    both = _figures(settings, 1000, [2.0, 4.0], peaks)
    assert both.limit_mb == 1514 and not both.within_limit
    assert both.times_copy == {"fp16": 0.5, "int4": 1.5}
    assert _figures(settings, 1000, [2.0], {"fp16": peaks["fp16"]}).within_limit


@pytest.mark.parametrize(("precision", "held"), [("fp32", 1), ("fp16", 2)])
def test_loading_is_measured_against_the_weights(tmp_path, precision, held):
    write_checkpoint(tmp_path / "model", TINY, lambda _: None)
    out = tmp_path / "bundle"
    bundle = export(
        ExportSettings(str(tmp_path / "model"), out, precisions=precisions(precision), segments=3)
    )
    done = CliRunner().invoke(main, ["bench", "load", str(out), "--json"])
    assert done.exit_code == 0, done.output
    figures = json.loads(done.stdout.splitlines()[-1])
    data = sum(path.stat().st_size for path in out.glob("target/*.data")) / 1e6
    assert isinstance(bundle, Bundle) and figures["weights_mb"] == round(data)
    assert figures["held_mb"] == round(held * data) and figures["segments"] == 3
    assert figures["peak_mb"] >= figures["steady_mb"]


def test_options():
    for arguments in (["--model", "70b"], ["--segments", "0"], ["--precision", "fp8"]):
        done = CliRunner().invoke(main, ["bench", "export", *arguments])
        assert done.exit_code == 2
    assert CliRunner().invoke(main, ["bench", "load", "--help"]).exit_code == 0
