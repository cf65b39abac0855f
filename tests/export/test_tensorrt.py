"""The exported file builds into a TensorRT engine on the CPU, with only its capacity pinned."""

import pytest

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
