"""Kernels that ONNX Runtime uses for packed weights on this CPU: `python -m bench.kernels`.

One row is multiplied by a matrix in fp32, and in int4 and int8 blocks of 32, as in a bundle, or of
the sizes of `--block`. Kinds and sizes take turns. The error relative to the same graph without
fusion identifies the kernel: about 3e-3 with int8 activations (dot products), about 1e-6 with fp32
arithmetic, and 0 if nothing was fused and the weights are unpacked at every call. `--level 1`
requests the fp32 arithmetic of CPUs without dot products. `--folder` keeps the graphs, so that a
machine without onnx (a device, an emulator) can measure them.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import click
import numpy as np
import numpy.typing as npt
import onnxruntime

BLOCK_ROWS = 32
"""Block size of a bundle's weights."""
BLOCK_CHOICES = ("16", "32", "64", "128")
KINDS = ("fp32", "int4", "int8")


class Kernel(NamedTuple):
    kind: str
    milliseconds: float
    """Time of the fastest call."""
    error: float
    """Largest error, relative to the largest result."""
    block: int
    """Rows that share a scale; 0 for fp32."""


class _Case(NamedTuple):
    """A graph of a kind and a block size."""

    kind: str
    block: int

    def path(self, folder: Path) -> Path:
        plain = self.block in (0, BLOCK_ROWS)
        return folder / (f"{self.kind}.onnx" if plain else f"{self.kind}-{self.block}.onnx")


def _cases(blocks: Sequence[int]) -> list[_Case]:
    return [_Case(kind, block) for kind in KINDS for block in ((0,) if kind == "fp32" else blocks)]


def write(folder: Path, rows: int, columns: int, blocks: Sequence[int] = (BLOCK_ROWS,)) -> None:
    """Writes one graph for each kind and block size, `[m, rows] x [rows, columns]`. `rows` is a
    multiple of the blocks."""
    from onnx import TensorProto, helper, numpy_helper, save

    random = np.random.default_rng(0)
    weights = random.integers(-8, 8, (rows, columns)).astype(np.int8)
    nibbles = (weights.reshape(-1, 2) & 15).astype(np.uint8)
    packed = (nibbles[:, 0] | nibbles[:, 1] << 4).astype(np.uint8).tobytes()
    tensors = {
        "fp32": numpy_helper.from_array(random.random((rows, columns), dtype=np.float32), "w"),
        "int4": helper.make_tensor("w", TensorProto.INT4, [rows, columns], packed, raw=True),
        "int8": numpy_helper.from_array(weights, "w"),
    }
    for case in _cases(blocks):
        save(_model(case, rows, columns, tensors[case.kind]), case.path(folder))


def _model(case: _Case, rows: int, columns: int, weights: Any) -> Any:
    """The graph of a product with `weights`, after unpacking them if they are blocks."""
    from onnx import TensorProto, helper, numpy_helper

    nodes = [helper.make_node("MatMul", ["x", "d" if case.block else "w"], ["y"])]
    tensors = [weights]
    if case.block:
        scales = np.random.default_rng(0).random((rows // case.block, columns), dtype=np.float32)
        tensors.append(numpy_helper.from_array(scales, "s"))
        blocks: dict[str, Any] = {"axis": 0, "block_size": case.block}
        nodes.insert(0, helper.make_node("DequantizeLinear", ["w", "s"], ["d"], **blocks))
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["m", rows])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["m", columns])
    graph = helper.make_graph(nodes, case.kind, [x], [y], tensors)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)])
    model.ir_version = 10
    return model


def measure(
    folder: Path,
    calls: int,
    level: int = 4,
    blocks: Sequence[int] = (BLOCK_ROWS,),
    threads: int = 1,
) -> Iterator[Kernel]:
    """Measures the graphs of `write`, in turns."""
    cases = _cases(blocks)
    sessions = [_session(case.path(folder), level, threads, fused=True) for case in cases]
    inputs = sessions[0].get_inputs()[0].shape[1]
    x = np.random.default_rng(1).random((1, inputs), dtype=np.float32)
    taken_s: list[list[float]] = [[] for _ in cases]
    for _ in range(calls):
        for session, times in zip(sessions, taken_s, strict=True):
            start = time.perf_counter()
            session.run(None, {"x": x})
            times.append(time.perf_counter() - start)
    for case, session, times in zip(cases, sessions, taken_s, strict=True):
        (found,) = session.run(None, {"x": x})
        reference = _session(case.path(folder), level, threads, fused=False)
        expected: npt.NDArray[np.float32] = reference.run(None, {"x": x})[0]
        error = float(np.abs(found - expected).max() / np.abs(expected).max())
        yield Kernel(case.kind, round(min(times) * 1000, 4), error, case.block)


def _session(path: Path, level: int, threads: int, *, fused: bool) -> Any:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
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
@click.option("--threads", type=click.IntRange(min=1), default=1, show_default=True)
@click.option("--block", "blocks", type=click.Choice(BLOCK_CHOICES), multiple=True,
              default=[str(BLOCK_ROWS)], show_default=True)  # fmt: skip
def main(
    folder: Path | None,
    rows: int,
    columns: int,
    calls: int,
    level: int,
    threads: int,
    blocks: tuple[str, ...],
) -> None:
    """Multiply one row by packed weights, by kind; existing graphs in the folder are used."""
    sizes = sorted({int(block) for block in blocks})
    with TemporaryDirectory() as scratch:
        where = folder or Path(scratch)
        where.mkdir(parents=True, exist_ok=True)
        if not all(case.path(where).exists() for case in _cases(sizes)):
            write(where, max(rows // sizes[-1], 1) * sizes[-1], columns // 2 * 2, sizes)
        found = list(measure(where, calls, level, sizes, threads))
    for kernel in found:
        name = f"{kernel.kind} {kernel.block or ''}"
        click.echo(f"{name:8}  {kernel.milliseconds:9.4f} ms   error {kernel.error:.1e}")
    version = onnxruntime.__version__
    click.echo(json.dumps({"onnxruntime": version, "kernels": [k._asdict() for k in found]}))


if __name__ == "__main__":
    main()
