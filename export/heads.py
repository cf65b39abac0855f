"""Exit heads: predictions of the target's token from its hidden state after some of its layers.

An untrained exit is the target's final norm, followed by the target's head (the logit lens;
nostalgebraist 2020). A trained exit first corrects the state by a residual adapter of low rank (as
in the tuned lens, arXiv 2303.08112, and Kangaroo, arXiv 2404.18911):

    h + up @ silu(down @ rms_norm(h, norm))

Trained adapters are stored in one safetensors file, float16 or float32. Each layer L with an
adapter has

    exit.L.norm.weight  [hidden]
    exit.L.down.weight  [rank, hidden]
    exit.L.up.weight    [hidden, rank]

and the file has metadata `edgespec`, a JSON text: {"target": name, "hidden": int, "layers": int of
the target, "calibration": {"L": the figures of `edgespec.manifest.Calibration`}}.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from edgespec.architecture import Architecture
from edgespec.errors import CheckpointError, UsageError
from edgespec.manifest import MAIN_OPSET, Calibration, Precisions
from export.nodes import NodeWriter, Shape
from export.operators import operators
from export.sources.safetensors_file import StoredTensor, read_header

FINAL_NORM = "model.norm.weight"
_TENSOR = re.compile(r"exit\.([1-9]\d*)\.(norm|down|up)\.weight")
_METADATA = "edgespec"


class Adapter(NamedTuple):
    """The weights of one trained exit, in float32."""

    norm: npt.NDArray[np.float32]
    """[hidden]"""
    down: npt.NDArray[np.float32]
    """[rank, hidden]"""
    up: npt.NDArray[np.float32]
    """[hidden, rank]"""


class _Notes(msgspec.Struct, frozen=True):
    target: str
    hidden: int
    layers: int
    calibration: dict[int, Calibration] = {}


@dataclass(frozen=True)
class ExitHeads:
    """The trained exit heads of one target; the keys are the layers that they follow."""

    path: Path
    target: str
    hidden: int
    layers: int
    adapters: Mapping[int, Adapter]
    calibration: Mapping[int, Calibration]

    def check(self, target: Architecture) -> None:
        """Raise `UsageError` for heads of another target."""
        if (self.hidden, self.layers) != (target.hidden, target.layers):
            raise UsageError(
                f"{self.path} has exit heads of {self.target}, with hidden size {self.hidden} and "
                f"{self.layers} layers; this target has {target.hidden} and {target.layers}"
            )

    def check_borders(self, borders: Collection[int]) -> None:
        """Raise `UsageError` if no segment of the target ends at a head."""
        if not self.adapters.keys() & set(borders):
            there = ",".join(map(str, sorted(self.adapters)))
            raise UsageError(
                f"{self.path} has exit heads after the layers {there}, at none of which the target "
                f"is cut; export it with --split {there}"
            )


def read_heads(path: Path) -> ExitHeads:
    """Read a file of exit heads. Raises `UsageError` if missing, `CheckpointError` if damaged."""
    if not path.is_file():
        raise UsageError(f"there is no file {path}; make one with 'edgespec calibrate'")
    stored, metadata = read_header(path)
    try:
        notes = msgspec.json.decode(str(metadata[_METADATA]), type=_Notes)
    except (KeyError, msgspec.MsgspecError) as error:
        reason = "it has no such metadata" if isinstance(error, KeyError) else str(error)
        raise CheckpointError(
            f"{path} does not say which target its exit heads belong to ({reason}); "
            "make it with 'edgespec calibrate'"
        ) from error
    adapters = _adapters(path, stored, notes)
    for layer in notes.calibration:
        if layer not in adapters:
            raise _damaged(path, f"has figures for layer {layer} but no exit head after it")
    return ExitHeads(
        path, notes.target, notes.hidden, notes.layers, adapters, dict(notes.calibration)
    )


def _adapters(path: Path, stored: Mapping[str, StoredTensor], notes: _Notes) -> dict[int, Adapter]:
    found: dict[int, dict[str, npt.NDArray[np.float32]]] = {}
    for name, tensor in stored.items():
        match = _TENSOR.fullmatch(name)
        if match is None or int(match[1]) >= notes.layers:
            raise _damaged(path, f"has the tensor {name}, which belongs to no exit head")
        if tensor.dtype not in ("F16", "F32"):
            raise _damaged(path, f"stores {name} as {tensor.dtype}, not as float16 or float32")
        values = tensor.read().astype(np.float32)
        if not np.isfinite(values).all():
            raise _damaged(path, f"holds numbers in {name} that are not finite")
        found.setdefault(int(match[1]), {})[match[2]] = values
    if not found:
        raise _damaged(path, "has no exit head")
    return {layer: _adapter(path, layer, found[layer], notes.hidden) for layer in sorted(found)}


def _adapter(
    path: Path, layer: int, parts: Mapping[str, npt.NDArray[np.float32]], hidden: int
) -> Adapter:
    for part in Adapter._fields:
        if part not in parts:
            raise _damaged(path, f"lacks exit.{layer}.{part}.weight")
    down = parts["down"]
    rank = down.shape[0] if down.ndim == 2 else 0
    expected = {"norm": (hidden,), "down": (rank, hidden), "up": (hidden, rank)}
    for part, shape in expected.items():
        if not rank or parts[part].shape != shape:
            raise _damaged(
                path,
                f"has exit.{layer}.{part}.weight of shape {list(parts[part].shape)}, which does "
                f"not fit the hidden size {hidden} and the rank {rank}",
            )
    return Adapter(**parts)


def _damaged(path: Path, what: str) -> CheckpointError:
    return CheckpointError(f"{path} {what}; make it again with 'edgespec calibrate'")


def exit_graph(
    shapes: Architecture,
    precisions: Precisions,
    layer: int,
    final_norm: npt.NDArray[Any],
    adapter: Adapter | None,
    *,
    file: str,
    opset: int = MAIN_OPSET,
) -> ir.Model:
    """Build the graph from hidden states after `layer` layers to features for the shared head.

    The weights, including `final_norm` [hidden], are stored inside the graph, as floats of the
    activations' type. Raises `CheckpointError` for a weight that is too large for that type.
    """
    graph = NodeWriter(precisions, opset)
    chosen = operators(graph)
    shape: Shape = ["batch", "tokens", shapes.hidden]
    hidden = graph.input(f"hidden.{layer}", shape, graph.float)
    if adapter is not None:
        hidden = _adapted(graph, f"exit.{layer}", hidden, adapter, shapes.norm_epsilon)
    weight = _constant(graph, FINAL_NORM, final_norm)
    features = chosen.norm("model.norm", hidden, weight, shapes.norm_epsilon)
    graph.output(features, "features", shape, graph.float)
    return graph.model(file)


def _adapted(
    graph: NodeWriter, name: str, hidden: ir.Value, adapter: Adapter, epsilon: float
) -> ir.Value:
    """Add the residual adapter to the hidden states."""
    chosen = operators(graph)
    norm = _constant(graph, f"{name}.norm.weight", adapter.norm)
    normed = chosen.norm(f"{name}.norm", hidden, norm, epsilon)
    down = _constant(graph, f"{name}.down.weight", adapter.down.T)
    inner = chosen.swish(f"{name}.inner", graph.node("MatMul", f"{name}.down", normed, down))
    up = _constant(graph, f"{name}.up.weight", adapter.up.T)
    change = graph.node("MatMul", f"{name}.up", inner, up)
    return graph.node("Add", f"{name}.hidden", hidden, change)


def _constant(graph: NodeWriter, name: str, values: npt.NDArray[Any]) -> ir.Value:
    with np.errstate(over="ignore"):  # checked below
        converted = np.ascontiguousarray(values, graph.dtype)
    if not np.isfinite(converted).all():
        raise CheckpointError(
            f"tensor {name} is too large for {graph.precisions.layers}; "
            "export the target with a wider precision"
        )
    return graph.constant(name, converted)
