"""`edgespec inspect`, on a bundle of a tiny random Llama."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import msgspec
import pytest
from click.testing import CliRunner

from cli.bundle_view import inspect
from cli.main import main
from edgespec.errors import BundleError
from edgespec.manifest import Bundle, Manifest


@pytest.fixture
def copied(tiny_bundle: Bundle, tmp_path: Path) -> Path:
    return shutil.copytree(tiny_bundle.folder, tmp_path / "bundle")


def test_shows_what_is_there(tiny_bundle: Bundle) -> None:
    result = CliRunner(env={"COLUMNS": "160"}).invoke(main, ["inspect", str(tiny_bundle.folder)])
    assert result.exit_code == 0, result.output
    words = " ".join(result.output.split())
    assert "origin llama" in words
    assert "heads 4 of 16, 2 for keys and values" in words
    assert "vocabulary 300 (untied head)" in words
    assert "[0, 1) target/segment-00.onnx target/exit-00.onnx" in words
    assert "[2, 3) target/segment-02.onnx none" in words
    assert "opset 24" in words
    assert "cpu-fp32 llama fp32 (head fp32, embedding fp32) 3 24" in words
    assert "cpu-int8 llama int8 (head int8, embedding fp16) 3 24" in words
    assert "end ids 1" in words
    assert "chat template no" in words
    assert "checksums" not in words


def test_sizes_add_up(tiny_bundle: Bundle, capsys: pytest.CaptureFixture[str]) -> None:
    inspect(tiny_bundle.folder, verify=False, as_json=False)
    shown = capsys.readouterr().out
    files = tiny_bundle.folder.rglob("*")
    total = sum(p.stat().st_size for p in files if p.is_file() and p.name != "manifest.json")
    assert f"{total / 1e6:.1f} MB, made by" in " ".join(shown.split())


def test_verify_says_so(tiny_bundle: Bundle, capsys: pytest.CaptureFixture[str]) -> None:
    inspect(tiny_bundle.folder, verify=True, as_json=False)
    count = len(tiny_bundle.manifest.files)
    assert f"all {count} files agree with their checksums" in capsys.readouterr().out


@pytest.mark.parametrize("verify", [False, True])
def test_json_is_the_manifest_on_one_line(
    tiny_bundle: Bundle, verify: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    inspect(tiny_bundle.folder, verify=verify, as_json=True)
    [line] = capsys.readouterr().out.splitlines()
    document = json.loads(line)
    assert document.pop("target_fingerprint") == tiny_bundle.manifest.target_fingerprint
    assert document.pop("verified", False) is verify
    assert msgspec.convert(document, Manifest) == tiny_bundle.manifest


@pytest.mark.parametrize("name", ["target/head.data", "draft/cpu-int8/model.onnx"])
def test_verify_names_the_file_with_a_flipped_byte(copied: Path, name: str) -> None:
    path = copied / name
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    inspect(copied, verify=False, as_json=True)
    with pytest.raises(BundleError, match=f"{name} is damaged"):
        inspect(copied, verify=True, as_json=True)


def test_verify_names_a_missing_file(copied: Path) -> None:
    (copied / "tokenizer/tokenizer.json").unlink()
    with pytest.raises(BundleError, match=r"tokenizer\.json is missing"):
        inspect(copied, verify=True, as_json=False)


def test_no_bundle_is_one_sentence(tmp_path: Path) -> None:
    result = CliRunner().invoke(main, ["inspect", str(tmp_path)])
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr.strip() == f"edgespec: {tmp_path} is no bundle: it has no manifest.json"


def test_brackets_in_names_are_shown(copied: Path, capsys: pytest.CaptureFixture[str]) -> None:
    manifest = copied / "manifest.json"
    text = manifest.read_text().replace('"name": "llama"', '"name": "[red]a[/b]"')
    edited = msgspec.json.decode(text, type=Manifest).sealed()
    manifest.write_bytes(msgspec.json.encode(edited))
    inspect(copied, verify=False, as_json=False)
    assert "[red]a[/b]" in capsys.readouterr().out


def test_a_devices_copy_without_the_target_verifies(
    copied: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.rmtree(copied / "target")
    inspect(copied, verify=True, as_json=False)
    shown = capsys.readouterr().out
    assert "agree with their checksums" in shown
    assert "enough for a device" in shown
