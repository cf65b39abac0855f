"""The models that `bench step` measures: their weights, their bundles, and the bytes of a step.

A draft is the target itself (all its layers, with the head), exported for the CPU profile of the
same precision, or for that of llama.cpp.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path

import gguf
import onnx_ir as ir

from bench.lab.builtin import weights_file
from bench.lab.random_checkpoint import nbytes, shards, write_checkpoint
from bench.memory.disk import check_free
from bench.step.settings import ROLES, SHAPES, Precision, Role, StepShape
from edgespec.manifest import SELF_DRAFT, Bundle
from edgespec.progress import progress
from engines.machine.profiles import precisions
from export.bundle import ExportSettings, export

CACHE_NUMBER_BYTES = 4
"""The caches hold fp32."""
LOOK_UPS = frozenset({"Gather", "RotaryEmbedding"})
"""Operators that read a few rows of a table."""
LARGEST_RATIO = 9.0
"""Most space that checkpoint, bundle and GGUF files take together, relative to the fp16 weights: 1
for each of checkpoint and GGUF, 2 for each of target, draft and GGUF at fp32, and some reserve."""


def roles_of(precision: Precision) -> tuple[Role, ...]:
    """What is measured: llama.cpp too, if its bindings are installed and have this precision."""
    if precision == "fp32" or importlib.util.find_spec("llama_cpp") is None:
        return ("draft", "target")
    return ROLES


def profile_of(role: Role, precision: Precision) -> str:
    """Name of the profile whose drafts have this precision."""
    return f"{'llamacpp' if role == 'llamacpp draft' else 'cpu'}-{precision}"


def checkpoint_of(shape: str, folder: Path) -> Path:
    """The built-in weights' GGUF file, or a new checkpoint of random weights in `folder`.

    Raises `EdgespecError` if the built-in weights are not installed or the disk has no room.
    """
    config = SHAPES[shape]
    if config is None:
        return weights_file()
    total_bytes = sum(nbytes(shard) for shard in shards(config))
    check_free(folder, total_bytes * LARGEST_RATIO)
    checkpoint = folder / shape
    with progress("writing weights", total_bytes) as advance:
        write_checkpoint(checkpoint, config, advance)
    return checkpoint


def step_bundle(checkpoint: Path, out: Path, precision: Precision) -> Bundle:
    """Exports a checkpoint as a target of one segment and as its own draft."""
    return export(
        ExportSettings(
            target=str(checkpoint),
            out=out,
            precisions=precisions(precision),
            drafts=tuple(
                (profile_of(role, precision), SELF_DRAFT)
                for role in roles_of(precision)
                if role != "target"
            ),
        )
    )


def weight_bytes(bundle: Bundle, role: Role, precision: Precision) -> int:
    """Bytes of the weights that every step reads: matrices, their scales, norms and the head, as
    they are on the disk. Tables of which a step reads a few rows (embedding, rotary) are left out,
    unless the head is the embedding.
    """
    if role == "llamacpp draft":
        return _gguf_bytes(bundle.path(bundle.draft(profile_of(role, precision)).graph))
    if role == "draft":
        graphs = [bundle.draft(profile_of(role, precision)).graph]
    else:
        target = bundle.manifest.target
        graphs = [*(segment.graph for segment in target.segments), target.head]
    tensors: dict[object, int] = {}
    for graph in graphs:
        tensors |= _tensors_read(bundle.path(graph))
    return sum(tensors.values())


def _gguf_bytes(path: Path) -> int:
    sizes = {tensor.name: int(tensor.n_bytes) for tensor in gguf.GGUFReader(path).tensors}
    if "output.weight" in sizes:
        del sizes["token_embd.weight"]
    return sum(sizes.values())


def _tensors_read(path: Path) -> dict[object, int]:
    """Bytes of a graph's initialisers by their place in a data file, or by file and name."""
    found: dict[object, int] = {}
    for name, value in ir.load(path).graph.initializers.items():
        tensor = value.const_value
        if tensor is None or {use.node.op_type for use in value.uses()} <= LOOK_UPS:
            continue
        if isinstance(tensor, ir.ExternalTensor):
            found[tensor.location, tensor.offset] = tensor.nbytes
        else:
            found[path.name, name] = tensor.nbytes
    return found


def cache_bytes(bundle: Bundle, shape: StepShape) -> int:
    """Bytes of the keys and values that a step reads or writes."""
    sizes = bundle.manifest.target.architecture
    position_bytes = 2 * sizes.layers * sizes.kv_heads * sizes.head_dim * CACHE_NUMBER_BYTES
    return shape.rows * (shape.past_tokens + shape.tokens) * position_bytes
