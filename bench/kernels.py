"""Kernels that ONNX Runtime uses for packed weights on this CPU: `python -m bench.kernels`.

One row is multiplied by a matrix in fp32, and in int4 and int8 blocks of 32 as in a bundle. The
error relative to the same graph without fusion identifies the kernel: about 3e-3 with int8
activations (dot products), about 1e-6 with fp32 arithmetic, and 0 if nothing was fused and the
weights are unpacked at every call. `--level 1` requests the fp32 arithmetic of CPUs without dot
products. `--folder` keeps the graphs, so that a machine without onnx (a device, an emulator) can
measure them.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import click
import numpy as np
import numpy.typing as npt
import onnxruntime

BLOCK_ROWS = 32
KINDS = ("fp32", "int4", "int8")


class Kernel(NamedTuple):
    kind: str
    milliseconds: float
    """Time of the fastest call."""
    error: float
    """Largest error, relative to the largest result."""


def write(folder: Path, rows: int, columns: int) -> None:
    """Writes one graph for each kind, `[m, rows] x [rows, columns]`. `rows` is a multiple of
    `BLOCK_ROWS`."""
    from onnx import TensorProto, helper, numpy_helper, save

    random = np.random.default_rng(0)
    weights = random.integers(-8, 8, (rows, columns)).astype(np.int8)
    scales = random.random((rows // BLOCK_ROWS, columns), dtype=np.float32)
    nibbles = (weights.reshape(-1, 2) & 15).astype(np.uint8)
    packed = (nibbles[:, 0] | nibbles[:, 1] << 4).astype(np.uint8).tobytes()
    tensors = {
        "fp32": numpy_helper.from_array(random.random((rows, columns), dtype=np.float32), "w"),
        "int4": helper.make_tensor("w", TensorProto.INT4, [rows, columns], packed, raw=True),
        "int8": numpy_helper.from_array(weights, "w"),
    }
    unpack = helper.make_node("DequantizeLinear", ["w", "s"], ["d"], axis=0, block_size=BLOCK_ROWS)
    for kind, tensor in tensors.items():
        plain = kind == "fp32"
        graph = helper.make_graph(
            [
                *([] if plain else [unpack]),
                helper.make_node("MatMul", ["x", "w" if plain else "d"], ["y"]),
            ],
            kind,
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["m", rows])],
            [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["m", columns])],
            [tensor, *([] if plain else [numpy_helper.from_array(scales, "s")])],
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)])
        model.ir_version = 10
        save(model, folder / f"{kind}.onnx")


def measure(folder: Path, calls: int, level: int = 4) -> Iterator[Kernel]:
    """Measures the graphs of `write` on one thread."""
    for kind in KINDS:
        path = folder / f"{kind}.onnx"
        reference = _session(path, level, fused=False)
        x = np.random.default_rng(1).random(
            (1, reference.get_inputs()[0].shape[1]), dtype=np.float32
        )
        expected: npt.NDArray[np.float32] = reference.run(None, {"x": x})[0]
        session, taken_s = _session(path, level, fused=True), []
        for _ in range(calls):
            start = time.perf_counter()
            (found,) = session.run(None, {"x": x})
            taken_s.append(time.perf_counter() - start)
        error = float(np.abs(found - expected).max() / np.abs(expected).max())
        yield Kernel(kind, round(min(taken_s) * 1000, 4), error)


def _session(path: Path, level: int, *, fused: bool) -> Any:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    options.add_session_config_entry("session.qdq_matmulnbits_accuracy_level", str(level))
    if not fused:
        level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        options.graph_optimization_level = level
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


@click.command()
@click.option(
    "--folder", type=click.Path(file_okay=False, path_type=Path), help="Folder of the graphs."
)
@click.option("--rows", type=click.IntRange(min=BLOCK_ROWS), default=576, show_default=True)
@click.option("--columns", type=click.IntRange(min=2), default=1536, show_default=True)
@click.option("--calls", type=click.IntRange(min=1), default=12, show_default=True)
@click.option("--level", type=click.IntRange(0, 4), default=4, show_default=True)
def main(folder: Path | None, rows: int, columns: int, calls: int, level: int) -> None:
    """Multiply one row by packed weights, by kind; existing graphs in the folder are used."""
    with TemporaryDirectory() as scratch:
        where = folder or Path(scratch)
        where.mkdir(parents=True, exist_ok=True)
        if not all((where / f"{kind}.onnx").exists() for kind in KINDS):
            write(where, rows // BLOCK_ROWS * BLOCK_ROWS, columns // 2 * 2)
        found = list(measure(where, calls, level))
    for kernel in found:
        click.echo(f"{kernel.kind}  {kernel.milliseconds:9.4f} ms   error {kernel.error:.1e}")
    version = onnxruntime.__version__
    click.echo(json.dumps({"onnxruntime": version, "kernels": [k._asdict() for k in found]}))


if __name__ == "__main__":
    main()
