"""Building a TensorRT engine from a graph of a bundle, with `tensorrt` or `tensorrt_rtx` alike.

TensorRT's KV update wants a static capacity, so it is pinned while the ONNX file is read; the file
itself stays symbolic. TensorRT-RTX builds on a machine without a GPU (SM 75 to 89, 120 and 121),
which proves that a graph parses and builds.
"""

from __future__ import annotations

import importlib
from pathlib import Path
from types import ModuleType

import onnx_ir as ir

from edgespec.errors import EngineError

MODULES = ("tensorrt", "tensorrt_rtx")
Range = tuple[int, int, int]
"""Smallest, usual and largest."""


def load_tensorrt() -> ModuleType:
    """`tensorrt` where it is installed, else `tensorrt_rtx`. Raises `EngineError`."""
    for name in MODULES:
        try:
            return importlib.import_module(name)
        except ImportError:
            continue
    raise EngineError(
        "TensorRT is not installed; install 'edgespec[tensorrt-rtx]', or JetPack's own on a Jetson"
    )


def build_engine(
    path: Path, *, capacity: int, batch: Range = (1, 1, 1), tokens: Range = (1, 8, 64)
) -> bytes:
    """Builds the graph at `path` for one capacity; the serialised engine.

    Every dynamic dimension but `batch` and `tokens` is derived: `selected` spans 1 to all of them.
    Raises `EngineError` naming the node that TensorRT has no kernel for.
    """
    trt = load_tensorrt()
    logger = trt.Logger(trt.Logger.ERROR)
    builder = trt.Builder(logger)
    network = builder.create_network(_strongly_typed(trt))
    parser = trt.OnnxParser(network, logger)
    # Held in memory with its weights inside, since external paths are relative to the file.
    if not parser.parse(_pinned(path, capacity)):
        error = parser.get_error(0)
        raise EngineError(f"TensorRT cannot read {path}, node {error.node_name()}: {error.desc()}")
    config = builder.create_builder_config()
    ranges: dict[str, Range] = {
        "batch": batch,
        "tokens": tokens,
        "selected": (1, batch[1] * tokens[1], batch[2] * tokens[2]),
    }
    profile = builder.create_optimization_profile()
    for name, dims in _inputs(path, capacity).items():
        shapes = [
            tuple(dim if isinstance(dim, int) else ranges[dim][point] for dim in dims)
            for point in range(3)
        ]
        profile.set_shape(name, *shapes)
    config.add_optimization_profile(profile)
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        raise EngineError(f"TensorRT {trt.__version__} cannot build {path} here")
    return bytes(plan)


def _strongly_typed(trt: ModuleType) -> int:
    flag = getattr(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)
    return 0 if flag is None else 1 << int(flag)


def _dims(value: ir.Value, capacity: int) -> list[int | str]:
    assert value.shape is not None
    dims = [dim if isinstance(dim, int) else str(dim.value) for dim in value.shape]
    return [capacity if dim == "capacity" else dim for dim in dims]


def _inputs(path: Path, capacity: int) -> dict[str, list[int | str]]:
    return {str(v.name): _dims(v, capacity) for v in ir.load(path).graph.inputs}


def _pinned(path: Path, capacity: int) -> bytes:
    model = ir.load(path)
    for value in [*model.graph.inputs, *model.graph.outputs]:
        value.shape = ir.Shape(_dims(value, capacity))
    ir.external_data.load_to_model(model)
    return bytes(ir.to_proto(model).SerializeToString())
