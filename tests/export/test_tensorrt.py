"""The exported file builds into a TensorRT engine on the CPU, with only its capacity pinned."""

import json
import shutil

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from edgespec.errors import EngineError
from edgespec.profiles import precisions
from export.bundle import ExportSettings, export
from export.tensorrt import build_engine

pytest.importorskip("tensorrt_rtx")


@pytest.mark.parametrize(
    "graph",
    [
        "target/segment-00.onnx",
        "target/segment-01.onnx",
        "target/head.onnx",
        "target/exit-00.onnx",
        "draft/gpu-fp16/model.onnx",
    ],
)
def test_fp16_graphs_build(half, graph):
    assert len(build_engine(half.path(graph), capacity=256, batch=(1, 2, 4))) > 1000


@pytest.fixture(scope="module")
def half(tmp_path_factory, tiny_llama_folder):
    out = tmp_path_factory.mktemp("half") / "bundle"
    settings = ExportSettings(
        str(tiny_llama_folder),
        out,
        precisions=precisions("fp16"),
        segments=2,
        drafts=(("gpu-fp16", "self"),),
    )
    return export(settings)


def test_a_graph_without_a_kernel_is_named(tiny_bundle):
    with pytest.raises(EngineError, match="segment-00"):
        build_engine(tiny_bundle.path("target/segment-00.onnx"), capacity=256)


@pytest.fixture(scope="module")
def fitted(tmp_path_factory, tiny_llama_folder):
    """A trained exit head, and a draft with a trimmed vocabulary."""
    place = tmp_path_factory.mktemp("fitted")
    draft = shutil.copytree(tiny_llama_folder, place / "draft")
    tensors = load_file(draft / "model.safetensors")
    kept = np.arange(0, 300, 2)
    save_file({**tensors, "edgespec.kept_ids": kept}, draft / "model.safetensors")
    config = json.loads((draft / "config.json").read_text())
    (draft / "config.json").write_text(json.dumps({**config, "edgespec": {"vocabulary": 150}}))
    heads = {
        "exit.1.norm.weight": np.ones(64, np.float16),
        "exit.1.down.weight": np.ones((8, 64), np.float16),
        "exit.1.up.weight": np.ones((64, 8), np.float16),
    }
    said = {"target": "tiny", "hidden": 64, "layers": 3}
    save_file(heads, place / "heads", metadata={"edgespec": json.dumps(said)})
    settings = ExportSettings(
        str(tiny_llama_folder),
        place / "bundle",
        precisions=precisions("fp16"),
        split=(1,),
        exit_heads=place / "heads",
        drafts=(("gpu-fp16", str(draft)),),
    )
    return export(settings)


@pytest.mark.parametrize("graph", ["target/exit-00.onnx", "draft/gpu-fp16/model.onnx"])
def test_trained_exits_and_trimmed_drafts_build(fitted, graph):
    assert len(build_engine(fitted.path(graph), capacity=256, batch=(1, 2, 4))) > 1000
