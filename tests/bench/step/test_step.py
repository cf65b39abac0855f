"""`edgespec bench step` on a tiny model, with programs in the place of llama.cpp's."""

from __future__ import annotations

import json
import time
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
from click.testing import CliRunner

from bench.step.llama import parsed
from bench.step.models import cache_bytes, roles_of, weight_bytes
from bench.step.sessions import operators_of_runs, session_clock, session_profiles
from bench.step.settings import BUILTIN, SHAPES, Plan, StepShape, default_threads
from cli.bench.step import SHAPES as CHOICES
from cli.main import main
from edgespec.errors import EdgespecError

RECORDED = Path(__file__).with_name("llama-bench-steps.json")
"""Output of llama.cpp's own program: `llama-bench -p 4 -n 64 -d 64 -r 2 -o json`."""
RECORDED_PROMPT = Path(__file__).with_name("llama-bench-prompt.json")
"""As above, with `-p 256 -n 0 -d 0`."""
PLAN = Plan(rows=(1, 2), tokens=(1, 4), turns=2, block_steps=2, llama_repeats=2)


@pytest.fixture(autouse=True)
def short(monkeypatch):
    """Fewer repetitions, and a small array for the bandwidth."""
    monkeypatch.setattr("bench.step.settings.FULL", PLAN)
    monkeypatch.setattr("bench.step.bandwidth.READ_BYTES", 1 << 20)


@pytest.fixture(params=[0.1, 3.0], ids=["idle", "busy"])
def load(request, monkeypatch):
    monkeypatch.setattr("os.getloadavg", lambda: (request.param, 0.0, 0.0))
    return request.param


@pytest.fixture
def llama_bench(tmp_path):
    """A `llama-bench` that prints a recorded output, and a `llama-quantize` that copies."""
    bench, quantize = tmp_path / "bin" / "llama-bench", tmp_path / "bin" / "llama-quantize"
    bench.parent.mkdir()
    bench.write_text(
        f"#!/bin/sh\ncase \"$*\" in *'-n 64'*) cat {RECORDED};; *) cat {RECORDED_PROMPT};; esac\n"
    )
    quantize.write_text('#!/bin/sh\n[ "$1" = --allow-requantize ] && cp "$2" "$3"\n')
    for program in (bench, quantize):
        program.chmod(0o755)
    return bench


def bench_step(*options):
    return CliRunner().invoke(main, ["bench", "step", "--shape", "tiny", *map(str, options)])


def test_the_command_on_a_tiny_model(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "temporary"))
    (tmp_path / "temporary").mkdir()
    plot = tmp_path / "step.png"
    result = bench_step("--threads", "1,2", "--plot", plot, "--json")
    assert result.exit_code == 0, result.output
    figures = json.loads(result.stdout.splitlines()[-1])
    assert figures["shape"] == "tiny" and figures["machine"]["cores"] > 0
    assert set(figures["bandwidth_gb_s"]) == {"1", "2"}
    assert figures["llama"] is None
    assert figures["ratio_to_llama"] == figures["target_ratio_to_llama"] == {}
    expected = {
        (role, precision, threads)
        for precision in ("fp32", "int8", "int4")
        for role in roles_of(precision)
        for threads in (1, 2)
    }
    models = {(m["role"], m["precision"], m["threads"]): m for m in figures["models"]}
    assert set(models) == expected
    for model in models.values():
        assert model["nodes"] == sum(model["operators"].values())
        assert (model["nodes"] > 10) == (model["role"] != "llamacpp draft")
        assert model["load_s"] > 0 and model["first_step_ms"] > 0
    steps = {(s["role"], s["precision"], s["threads"]): [] for s in figures["steps"]}
    assert set(steps) == expected
    for step in figures["steps"]:
        steps[step["role"], step["precision"], step["threads"]].append(
            (step["rows"], step["tokens"], step["past_tokens"])
        )
        assert 0 < step["python_ms"] < step["ms"] and 0 < step["python_share"] < 1
        assert step["read_mb"] > 0 and step["bandwidth_share"] > 0
        assert step["llama_ms"] is None and step["ratio_to_llama"] is None
    for shapes in steps.values():
        assert shapes == [(1, 1, 96), (1, 4, 96), (2, 1, 96), (2, 4, 96), (1, 256, 0)]
    assert "tiny: one token, one row" in result.stdout and "prompt" in result.stdout
    assert plot.stat().st_size > 1000
    assert not list((tmp_path / "temporary").iterdir())


def test_llama_cpp_in_turns(llama_bench, tmp_path, load):
    plot = tmp_path / "step.svg"
    options = ("--precision", "int4", "--threads", "1", "--plot", plot, "--json")
    result = bench_step("--llama-bench", llama_bench, *options)
    assert result.exit_code == 0, result.output
    figures = json.loads(result.stdout.splitlines()[-1])
    one = {s["role"]: s for s in figures["steps"] if (s["rows"], s["tokens"]) == (1, 1)}
    test = next(test for test in parsed(RECORDED.read_text()) if test.n_gen)
    assert one["draft"]["llama_ms"] == pytest.approx(test.ms, abs=1e-3)
    assert figures["ratio_to_llama"] == {"int4": {"1": one["draft"]["ratio_to_llama"]}}
    assert figures["target_ratio_to_llama"] == {"int4": {"1": one["target"]["ratio_to_llama"]}}
    # The mean of two turns' ratios is at least the ratio of the means.
    assert one["draft"]["ratio_to_llama"] >= 0.99 * one["draft"]["llama_ms"] / one["draft"]["ms"]
    for step in figures["steps"]:
        assert (step["llama_ms"] is None) == (step["rows"] > 1), "llama.cpp has one row"
    assert figures["llama"]["build"] == test.build and "int4" in figures["llama"]["model_mb"]
    assert figures["load_average"] == load
    assert ("the machine was busy (load 3.0)" in " ".join(result.stdout.split())) == (load > 1)
    assert "ratio to llama.cpp" in result.stdout and "llama.cpp" in plot.read_text()


def test_recorded_output_of_llama_bench():
    prompt, generation = parsed(RECORDED.read_text())
    assert (prompt.n_prompt, prompt.n_gen, prompt.n_depth) == (4, 0, 64)
    assert (generation.n_prompt, generation.n_gen, generation.n_depth) == (0, 64, 64)
    assert prompt.shape == StepShape(1, 4) and generation.shape == StepShape(1, 1)
    first, second = generation.samples_ns
    assert generation.ms == pytest.approx((first + second) / 2 / 1e6 / 64)
    first, second = prompt.samples_ns
    assert prompt.ms == pytest.approx((first + second) / 2 / 1e6)
    assert generation.model_size > 1e6


def test_a_prompt_of_llama_bench_is_that_of_the_plan():
    (test,) = parsed(RECORDED_PROMPT.read_text())
    assert test.shape == Plan().prompt


@pytest.mark.parametrize("output", ["", "error: no model", "[]", '[{"n_threads": 1}]', "{}"])
def test_other_output_of_llama_bench_is_a_sentence(output):
    with pytest.raises(EdgespecError, match="llama"):
        parsed(output)


def test_a_program_that_is_missing(llama_bench):
    result = bench_step("--llama-bench", "/nowhere/llama-bench")
    assert result.exit_code == 2 and len(result.stderr.splitlines()) == 1
    assert "/nowhere/llama-bench is no program" in result.stderr
    llama_bench.with_name("llama-quantize").unlink()
    result = bench_step("--llama-bench", llama_bench)
    assert result.exit_code == 2 and "llama-quantize is missing" in result.stderr


def test_a_program_that_fails(llama_bench):
    llama_bench.write_text("#!/bin/sh\necho loading >&2\necho 'no such model' >&2\nexit 3\n")
    result = bench_step("--llama-bench", llama_bench, "--precision", "int8", "--threads", "1")
    assert result.exit_code == 1 and len(result.stderr.splitlines()) == 1
    assert "exit code 3: no such model" in result.stderr


def test_a_plot_that_cannot_be_written_is_found_first(tmp_path):
    result = bench_step("--plot", tmp_path / "nowhere" / "a.png")
    assert result.exit_code == 2 and "--plot" in result.stderr and not result.stdout


def test_bytes_of_a_step(tiny_bundle):
    """The tiny Llama of tests/conftest.py: 64 wide, three layers, 300 ids, head not tied."""
    matrices = 3 * (2 * 64 * 64 + 2 * 64 * 32 + 3 * 64 * 128) + 300 * 64
    norms = (2 * 3 + 1) * 64
    assert 0 <= weight_bytes(tiny_bundle, "target", "fp32") - 4 * (matrices + norms) < 1000
    assert 0 <= weight_bytes(tiny_bundle, "draft", "fp32") - 4 * (matrices + norms) < 1000
    scales = matrices // 32
    int8 = matrices + 4 * (scales + norms)
    assert 0 <= weight_bytes(tiny_bundle, "draft", "int8") - int8 < 1000
    assert cache_bytes(tiny_bundle, StepShape(2, 4, 96)) == 2 * 100 * 2 * 3 * 32 * 4


def test_nodes_are_those_that_run(tiny_bundle, tmp_path):
    path, optimised = tiny_bundle.path("target/head.onnx"), tmp_path / "optimised.onnx"
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(optimised)
    onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    make = onnxruntime.InferenceSession.__init__
    with session_profiles(tmp_path) as profiles:
        session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        idle = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        feeds = {"features": np.zeros((1, 2, 64), np.float32), "select": np.array([1])}
        for _ in range(3):
            session.run(None, feeds)
        profiles.restart()
        session.run(None, feeds)
        found = profiles.nodes()
    del idle
    import onnx

    nodes = onnx.load(str(optimised), load_external_data=False).graph.node
    assert sum(found.values()) == len(nodes)
    assert set(found) == {node.op_type for node in nodes}
    assert onnxruntime.InferenceSession.__init__ is make


def test_nodes_of_the_last_runs():
    def event(name, ts, kind="Node"):
        return {"name": name, "ts": ts, "cat": kind, "args": {"op_name": "Add"}}

    events = [
        event("model_run", 0, "Session"), event("a_kernel_time", 1),
        event("model_run", 10, "Session"), event("a_kernel_time", 11), event("a_fence_before", 11),
        event("model_run", 20, "Session"), event("a_kernel_time", 21), event("b_kernel_time", 22),
    ]  # fmt: skip
    assert operators_of_runs(events, 1) == {"Add": 2}
    assert operators_of_runs(events, 2) == {"Add": 3}


def test_the_clock_counts_calls_of_sessions_only(tiny_bundle):
    path = tiny_bundle.path("target/head.onnx")
    feeds = {"features": np.zeros((1, 2, 64), np.float32), "select": np.array([1])}
    before = onnxruntime.InferenceSession.run
    with session_clock() as clock:
        session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        assert clock.seconds == 0
        start = time.perf_counter()
        session.run(None, feeds)
        inside, taken = clock.seconds, time.perf_counter() - start
        assert 0 < inside < taken
        time.sleep(0.01)
        assert clock.seconds == inside
    assert onnxruntime.InferenceSession.run is before
    session.run(None, feeds)
    assert clock.seconds == inside


def test_shapes_and_threads():
    assert set(CHOICES) == set(SHAPES) and CHOICES[0] == BUILTIN
    assert default_threads(1) == (1,)
    assert default_threads(2) == (1, 2)
    assert default_threads(6) == (1, 2, 4, 6)
    assert default_threads(16) == (1, 2, 4, 8, 16)
