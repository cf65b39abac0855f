"""Kernels of packed weights."""

from __future__ import annotations

import json
from pathlib import Path

from click.testing import CliRunner

from bench.kernels import KINDS, main, measure, write


def test_packed_weights_are_multiplied_packed(tmp_path: Path) -> None:
    """An error of 0 would say that they are unpacked at every call."""
    write(tmp_path, 64, 48)
    errors = {kernel.kind: kernel.error for kernel in measure(tmp_path, 2)}
    assert tuple(errors) == KINDS
    assert errors["fp32"] < 1e-6
    assert 0 < errors["int4"] < 0.05
    assert 0 < errors["int8"] < 0.05


def test_graphs_that_are_there_are_used(tmp_path: Path) -> None:
    write(tmp_path, 32, 2)
    before = (tmp_path / "int4.onnx").read_bytes()
    result = CliRunner().invoke(main, ["--folder", str(tmp_path), "--calls", "1"])
    assert result.exit_code == 0, result.output
    assert (tmp_path / "int4.onnx").read_bytes() == before
    found = json.loads(result.output.splitlines()[-1])
    assert [kernel["kind"] for kernel in found["kernels"]] == list(KINDS)


def test_block_sizes_in_turns(tmp_path: Path) -> None:
    options = ["--block", "64", "--block", "16", "--rows", "150", "--columns", "48"]
    result = CliRunner().invoke(main, ["--folder", str(tmp_path), "--calls", "1", *options])
    assert result.exit_code == 0, result.output
    found = json.loads(result.output.splitlines()[-1])["kernels"]
    cases = [(kernel["kind"], kernel["block"]) for kernel in found]
    assert cases == [("fp32", 0), ("int4", 16), ("int4", 64), ("int8", 16), ("int8", 64)]
    assert all(0 < kernel["error"] < 0.05 for kernel in found[1:])
    assert (tmp_path / "int4-64.onnx").stat().st_size < (tmp_path / "int4-16.onnx").stat().st_size
