"""Building one TensorRT engine from one graph.

TensorRT's KV update needs a static capacity and its attention needs 16-bit floats, so the input is
a copy of the graph (`export/tensorrt/half.py`). TensorRT-RTX builds on a machine without a GPU,
which proves that a graph parses and builds.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import onnx_ir as ir

from edgespec.errors import EngineError
from edgespec.manifest import MAIN_OPSET, Shapes
from engines.tensorrt_backend.api import (
    Monitor,
    build_into,
    installation,
    log,
    make_builder,
    make_monitor,
    make_network,
    one_line,
)
from export.tensorrt.timings import load_timings, save_timings


def build_engine(
    trt: Any,
    path: Path,
    out: Path,
    shapes: Sequence[Shapes],
    *,
    name: str,
    workspace_bytes: int = 0,
    tell: Callable[[str], None],
) -> None:
    """Build the graph at `path` and write the engine to `out`.

    The dynamic dimensions are `batch`, `tokens` and `selected`; each of `shapes` becomes an
    optimisation profile. `name` is the graph in messages. `workspace_bytes` limits the scratch
    memory of kernels (0: no limit). `tell` receives the progress. Ctrl-C ends the build within a
    step.

    Raises:
        EngineError: TensorRT cannot read or build a node, which the message names.
        OSError: the engine cannot be written.
    """
    monitor = make_monitor(trt, tell)

    def build() -> None:
        builder = make_builder(trt)
        network = make_network(trt, builder)
        _parse(trt, network, path, name)
        config = _config(trt, builder, ir.load(path), shapes, workspace_bytes)
        config.progress_monitor = monitor
        here = installation(trt)
        if here.keeps_timings:
            load_timings(config, here)
        with out.open("wb") as file:
            made = build_into(trt, builder, network, config, file)
        if not made:
            reason = log(trt).last() or "it says no more"
            raise EngineError(f"{here.name} cannot build {name}: {reason}")
        if here.keeps_timings:
            save_timings(config, here)

    try:
        _run(build, monitor)
    except BaseException:
        out.unlink(missing_ok=True)
        raise


def _config(
    trt: Any, builder: Any, model: ir.Model, shapes: Sequence[Shapes], workspace_bytes: int
) -> Any:
    config = builder.create_builder_config()
    # Without this flag TensorRT-RTX allocates memory while it runs and cannot be captured.
    if hasattr(trt.BuilderFlag, "REQUIRE_USER_ALLOCATION"):
        config.set_flag(trt.BuilderFlag.REQUIRE_USER_ALLOCATION)
    for shape in shapes:
        config.add_optimization_profile(_profile(builder, model, shape))
    if workspace_bytes:
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, workspace_bytes)
    return config


def _run(build: Callable[[], None], monitor: Monitor) -> None:
    """Run `build` in a thread, so that the main thread can handle signals during TensorRT's calls.

    TensorRT's callbacks (logger, monitor) must not raise.
    """
    with ThreadPoolExecutor(1, "tensorrt") as pool:
        future = pool.submit(build)
        try:
            future.result()
        except BaseException:
            monitor.cancelled = True
            raise


def _parse(trt: Any, network: Any, path: Path, name: str) -> None:
    parser = trt.OnnxParser(network, log(trt))
    _check_operators(trt, parser, ir.load(path), name)
    if parser.parse_from_file(str(path)):
        return
    here = installation(trt).name
    if not parser.num_errors:
        raise EngineError(f"{here} cannot read {name}: {log(trt).last() or 'it says no more'}")
    error = parser.get_error(0)
    node = error.node_name()
    where = f"node {node} ({error.node_operator()})" if node else "the file"
    reason = one_line(error.desc()).removeprefix(f"{node}: ")
    raise EngineError(f"{here} cannot read {name}, {where}: {reason}")


def _check_operators(trt: Any, parser: Any, model: ir.Model, name: str) -> None:
    missing = {
        node.op_type: node.name
        for node in reversed(model.graph)
        if not parser.supports_operator(node.op_type)
    }
    if not missing:
        return
    here = installation(trt).name
    kind, node = next(reversed(missing.items()))
    more = f", nor {', '.join(sorted(missing.keys() - {kind}))}" if len(missing) > 1 else ""
    opset = model.graph.opset_imports.get("", MAIN_OPSET)
    advice = (
        f"; it is written in opset {opset}, so export it for a profile with an older one, such as "
        "jetson-orin"
        if opset >= MAIN_OPSET and "TensorScatter" in missing
        else ""
    )
    raise EngineError(
        f"{here} cannot build {name}, node {node}: it has no operator {kind}{more}{advice}"
    )


def _profile(builder: Any, model: ir.Model, shapes: Shapes) -> Any:
    ranges = {"batch": shapes.batch, "tokens": shapes.tokens, "selected": shapes.selected}
    profile = builder.create_optimization_profile()
    for value in model.graph.inputs:
        dims = list(value.shape or ())
        profile.set_shape(
            value.name,
            *(
                tuple(
                    dim if isinstance(dim, int) else ranges[str(dim.value)][point] for dim in dims
                )
                for point in range(3)
            ),
        )
    return profile
