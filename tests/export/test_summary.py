"""The sentences after an export, against the sizes of real exports."""

from __future__ import annotations

from pathlib import Path

import pytest

from engines.machine.profiles import precisions
from export.bundle import ExportSettings, export
from export.summary import sentences, target_bytes


@pytest.fixture(scope="module")
def bundle(tiny_llama_folder: Path, tmp_path_factory: pytest.TempPathFactory):
    out = tmp_path_factory.mktemp("summary") / "bundle"
    return export(ExportSettings(str(tiny_llama_folder), out))


@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8", "int4"])
def test_the_estimate_is_the_size_of_the_weights(
    tiny_llama_folder: Path, tmp_path: Path, precision
) -> None:
    chosen = precisions(precision)
    settings = ExportSettings(str(tiny_llama_folder), tmp_path / "bundle", precisions=chosen)
    manifest = export(settings).manifest
    stored = sum(
        file.size
        for name, file in manifest.files.items()
        if name.startswith("target/") and name.endswith(".data")
    )
    estimate = target_bytes(manifest.target.architecture, chosen, manifest.context)
    assert estimate == pytest.approx(stored, rel=0.01)


def test_sizes_and_what_int8_saves_are_said(bundle) -> None:
    first, second = sentences(bundle, "model")
    assert first.startswith(f"wrote {bundle.folder}: ") and " MB, of which target " in first
    assert "with --precision int8 the target would be about" in first
    assert "the bundle has no draft" in second and "edgespec distill model" in second


def test_nothing_is_said_about_int8_or_a_draft_that_is_there(
    tiny_llama_folder: Path, tmp_path: Path
) -> None:
    chosen, drafts = precisions("int8"), (("cpu-int4", "self"),)
    out = tmp_path / "bundle"
    settings = ExportSettings(str(tiny_llama_folder), out, precisions=chosen, drafts=drafts)
    (only,) = sentences(export(settings), "model")
    assert "int8" not in only
