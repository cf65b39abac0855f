"""The bench of steps against a card's bound, run for real on the CPU at a tiny shape."""

from __future__ import annotations

import json

import pytest
import torch
from click.testing import CliRunner
from msgspec.structs import replace

from bench.gpu.bound import CardSpeeds, Work, known_card, layer_weights, work
from bench.gpu.figures import TimedStep
from bench.gpu.models import SHAPES, random_model
from bench.gpu.run import PAST_TOKENS
from cli.main import main

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("name", "bandwidth"),
    [
        ("NVIDIA A100-SXM4-40GB", 1555),
        ("NVIDIA A100-PCIE-40GB", 1555),
        ("NVIDIA A100-SXM4-80GB", 2039),
        ("NVIDIA A100 80GB PCIe", 1935),
        ("NVIDIA H100 80GB HBM3", 3350),
        ("NVIDIA H100 PCIe", 2000),
        ("NVIDIA H100 NVL", 3900),
        ("NVIDIA H200", 4800),
        ("NVIDIA GeForce RTX 4090", 1008),
    ],
)
def test_cards_are_known_by_the_names_they_give_themselves(name, bandwidth):
    found = known_card(name)
    assert found is not None and found.bandwidth_gb_s == bandwidth and found.source


def test_a_card_that_is_not_in_the_table():
    assert known_card("NVIDIA GeForce GTX 1050") is None


def test_the_least_work_of_a_7b_step():
    """6.476 G weights in the layers and 0.131 G in the head; half a megabyte a cached position."""
    with torch.device("meta"):
        model = random_model(SHAPES["llama-2-7b"], "fp16", torch.device("meta"))
    assert layer_weights(model) == 32 * (4 * 4096**2 + 3 * 4096 * 11008)
    assert model.nbytes == 2 * (layer_weights(model) + 32000 * 4096)
    one = work(model, 1, 1, PAST_TOKENS, 1)
    assert one.bytes == model.nbytes + (PAST_TOKENS + 1) * 2 * 32 * 4096 * 2
    attention = 4 * 32 * 4096 * (PAST_TOKENS + 1)
    assert one.operations == 2 * (layer_weights(model) + 32000 * 4096) + attention
    h200 = CardSpeeds(4.8e12, 989e12)
    assert one.bound_s(h200) == pytest.approx(2.775e-3, rel=1e-3)
    prompt = work(model, 1, 512, 0, 0)
    assert prompt.bytes < one.bytes, "a chunk that is not the last reads no head"
    assert prompt.bound_s(h200) == prompt.operations / h200.operations_per_s


def test_the_longer_of_reading_and_multiplying_is_the_bound():
    speeds = CardSpeeds(bytes_per_s=100.0, operations_per_s=1000.0)
    assert Work(200.0, 100.0).bound_s(speeds) == 2.0
    assert Work(200.0, 5000.0).bound_s(speeds) == 5.0


def test_an_aim_is_met_or_missed():
    step = TimedStep("torch", "one", 1, 11.0, 10.0, None, 1.1)
    assert step.ratio == pytest.approx(1.1) and step.met
    assert replace(step, ms=11.1).met is False and replace(step, aim=None).met is None


@pytest.mark.parametrize("precision", ["bf16", "int4"])
def test_the_command_on_a_cpu(tmp_path, precision, monkeypatch):
    monkeypatch.setattr("bench.gpu.bound.REPEAT_COUNT", 2)
    options = ["--shapes", "tiny", "--device", "cpu", "--precision", precision, "--rows", "2"]
    plot = tmp_path / "gpu.png"
    result = CliRunner().invoke(main, ["bench", "gpu", *options, "--plot", str(plot), "--json"])
    assert result.exit_code == 0, result.output
    figures = json.loads(result.stdout.splitlines()[-1])
    assert figures["device"] == "CPU" and figures["sheet"] is None
    assert min(figures["measured"].values()) > 0
    steps = {(step["backend"], step["kind"], step["size"]): step for step in figures["steps"]}
    measured = [("one", 1), ("verify", 1), ("verify", 2), ("prefill", 64), ("prefill", 128)]
    assert list(steps) == [
        (backend, *one) for backend in ("torch", "torch-fast") for one in measured
    ]
    for step in steps.values():
        assert step["ms"] > 0 and step["bound_ms"] > 0
        assert step["ratio"] == pytest.approx(step["ms"] / step["bound_ms"], abs=1e-3)
        assert step["aim"] is None and step["met"] is None
    assert "verify of 5" in result.stdout and "measured here" in result.stdout
    assert plot.stat().st_size > 1000


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is CUDA")
def test_without_cuda_it_says_so():
    result = CliRunner().invoke(main, ["bench", "gpu"])
    assert result.exit_code == 1
    assert "torch finds no CUDA device here" in result.stderr and "--device cpu" in result.stderr
