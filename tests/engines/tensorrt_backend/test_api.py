"""What an engine needs to run here, as a table; and what TensorRT says, as a sentence."""

import shlex
from dataclasses import replace
from pathlib import Path

import msgspec
import pytest

from edgespec.errors import EngineError
from edgespec.manifest import Built, Bundle, Shapes
from engines.tensorrt_backend import api as tensorrt_api
from engines.tensorrt_backend.api import (
    Installation,
    installation,
    load,
    one_line,
    version_numbers,
)
from engines.tensorrt_backend.matching import matching_engine, mismatch, rebuild_command

ORIN = Installation("tensorrt", "10.3.0.30", "8.7", "linux-aarch64")
GRAPH = "draft/cpu-int8/model.onnx"


def built(manifest, **changes):
    sources = {name: manifest.files[name].sha256 for name in (GRAPH, "draft/cpu-int8/model.data")}
    fields = {
        "graph": GRAPH,
        "file": "draft/cpu-int8/model-512.engine",
        "capacity": 512,
        "profile": "jetson-orin",
        "sources": sources,
        "api": "tensorrt",
        "version": "10.3.0.30",
        "capability": "8.7",
        "platform": "linux-aarch64",
        "floats": "fp16",
        "shapes": [Shapes(batch=(1, 1, 3), tokens=(1, 2, 64), selected=(1, 2, 64))],
    }
    return Built(**(fields | changes))


@pytest.mark.parametrize(
    ("changes", "here", "reason"),
    [
        ({}, ORIN, ""),
        ({"version": "10.7.0"}, ORIN, "TensorRT 10.7.0, and this machine has TensorRT 10.3.0.30"),
        ({"api": "tensorrt_rtx"}, ORIN, "was built by TensorRT-RTX 10.3.0.30, and this machine"),
        ({"platform": "linux-x86_64"}, ORIN, "on linux-x86_64, and this is linux-aarch64"),
        ({"capability": "11.0"}, ORIN, "compute capability 11.0, and this one is of 8.7"),
        ({}, replace(ORIN, capability=""), "8.7, and none answers here"),
        ({"capability": ""}, ORIN, ""),
        ({"sources": {GRAPH: "0" * 64}}, ORIN, f"was built from another {GRAPH}"),
        ({"sources": {"draft/gone.onnx": "0" * 64}}, ORIN, "from another draft/gone.onnx"),
    ],
)  # fmt: skip
def test_what_keeps_an_engine_from_running_here(tiny_bundle, changes, here, reason):
    found = mismatch(built(tiny_bundle.manifest, **changes), tiny_bundle.manifest, here)
    assert (reason in found) if reason else found == ""


def bundle_with(bundle, *engines):
    manifest = msgspec.structs.replace(bundle.manifest, engines=list(engines))
    return Bundle(bundle.folder, manifest)


def test_the_engine_of_a_graph_and_capacity(tiny_bundle):
    small, large = (
        built(tiny_bundle.manifest, capacity=n, file=f"draft/cpu-int8/model-{n}.engine")
        for n in (256, 512)
    )
    bundle = bundle_with(tiny_bundle, small, large)
    assert matching_engine(bundle, GRAPH, 256, "jetson-orin", ORIN) == small
    assert matching_engine(bundle, GRAPH, 512, "jetson-orin", ORIN) == large


def test_an_engine_without_a_cache_serves_every_capacity(tiny_bundle):
    head = built(tiny_bundle.manifest, graph="target/head.onnx", capacity=0)
    bundle = bundle_with(tiny_bundle, head)
    assert matching_engine(bundle, "target/head.onnx", 512, "cuda", ORIN) == head


@pytest.mark.parametrize(
    ("changes", "graph", "sentence", "command"),
    [
        (
            {"version": "10.7"},
            GRAPH,
            "model-512.engine was built by TensorRT 10.7, .*; build it again",
            "--profile jetson-orin --graphs draft --draft cpu-int8 --floats fp16 --capacity 512",
        ),
        (
            {"capacity": 256},
            GRAPH,
            r"no engine for 512 positions \(there are: 256\); build it",
            "--profile cuda --graphs draft --draft cpu-int8 --floats fp16 --capacity 512",
        ),
        (
            {},
            "target/head.onnx",
            "no engine of target/head.onnx; build it",
            "--profile cuda --graphs target",
        ),
    ],
)
def test_the_command_that_builds_it_again(tiny_bundle, changes, graph, sentence, command):
    bundle = bundle_with(tiny_bundle, built(tiny_bundle.manifest, **changes))
    with pytest.raises(EngineError, match=f"{sentence}: edgespec build .* {command}$"):
        matching_engine(bundle, graph, 512, "cuda", ORIN)


def words(bundle, graph, profile):
    """Of the commands, from the folder on."""
    commands = rebuild_command(bundle, graph, profile).split(" && ")
    found = [shlex.split(command) for command in commands]
    assert all(one[:3] == ["edgespec", "build", str(bundle.folder)] for one in found)
    return [" ".join(one[3:]) for one in found]


def test_engines_are_built_again_as_they_were(tiny_bundle):
    manifest = tiny_bundle.manifest
    bundle = Bundle(
        Path("/my bundles/it's one"),
        msgspec.structs.replace(
            manifest,
            engines=[
                built(manifest, floats="bf16"),
                built(manifest, capacity=256, floats="bf16"),
                built(manifest, profile="cuda", capacity=1024),
                built(manifest, graph="target/segment-00.onnx", profile="cuda", floats="bf16"),
                built(
                    manifest, graph="target/head.onnx", capacity=0, profile="cuda", floats="bf16"
                ),
            ],
        ),
    )
    draft, target = "--graphs draft --draft cpu-int8", "--profile cuda --graphs target"
    assert words(bundle, GRAPH, "jetson-orin") == [
        f"--profile jetson-orin {draft} --floats bf16 --capacity 256 --capacity 512"
    ]
    for graph in ("target/head.onnx", "target/segment-00.onnx"):
        assert words(bundle, graph, "cuda") == [f"{target} --floats bf16 --capacity 512"]
    assert words(bundle, GRAPH, "jetson-thor") == [f"--profile jetson-thor {draft}"]


def test_engines_of_two_types_are_built_by_two_commands(tiny_bundle):
    small = built(tiny_bundle.manifest, capacity=256)
    bundle = bundle_with(tiny_bundle, small, built(tiny_bundle.manifest, floats="bf16"))
    start = "--profile jetson-orin --graphs draft --draft cpu-int8"
    assert words(bundle, GRAPH, "jetson-orin") == [
        f"{start} --floats fp16 --capacity 256",
        f"{start} --floats bf16 --capacity 512",
    ]


def test_shapes_take_what_they_span():
    shapes = Shapes(batch=(1, 2, 4), tokens=(2, 5, 8), selected=(1, 5, 16))
    assert shapes.take(4, 8, 16)
    assert not shapes.take(5, 8) and not shapes.take(1, 1) and not shapes.take(1, 8, 17)


@pytest.mark.parametrize(
    ("version", "numbers"),
    [("10.3.0.30", (10, 3, 0, 30)), ("11.4", (11, 4)), ("11.4rc1", (11,)), ("", ())],
)
def test_versions_as_numbers(version, numbers):
    assert version_numbers(version) == numbers


@pytest.mark.parametrize(
    ("said", "line"),
    [
        ("In node 3\nwith name: x", "In node 3 with name: x"),
        (
            "Invalid Node - a.b\nITensor::getDimensions: Error Code 4: API Usage Error "
            "(a.b: sizes must match. In validate at /_src/x.cpp:192)\n[checkMacros] Error Code 1",
            "a.b: sizes must match",
        ),
        ("x" * 500, "x" * 399 + "…"),
    ],
)
def test_a_message_of_tensorrt_as_a_sentence(said, line):
    assert one_line(said) == line


def test_without_tensorrt_the_sentence_says_where_it_comes_from(monkeypatch):
    monkeypatch.setattr(tensorrt_api, "MODULES", ("no_tensorrt", "no_tensorrt_rtx"))
    with pytest.raises(EngineError, match=r"not installed; on a Jetson .* 'tensorrt-rtx'$"):
        load()


def test_what_is_installed_here():
    pytest.importorskip("tensorrt_rtx")
    here = installation(load())
    assert here.numbers >= (1, 7)
    assert here.platform.startswith("linux-")
