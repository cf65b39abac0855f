"""Loading of a bundle's target into torch, from the initialisers of its graphs.

An initialiser is found by its name and read when it is needed (`engines/external_data.py`), so host
memory holds one set of projections at a time. Blocks of int8 and int4 become floats at load: the
numbers of blocked `DequantizeLinear`, rounded to the model's type. torch has no product over blocks
of int8 (its `_weight_int8pack_mm` takes one scale for each output). int4 can stay packed
(`Placing.packs`).
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import onnx_ir as ir
import torch
from torch import Tensor

from edgespec.architecture import Architecture
from edgespec.errors import BundleError
from edgespec.manifest import Bundle
from engines.external_data import numbers
from engines.torch_backend.model import (
    GROUP_INPUTS,
    Dense,
    ExitWeights,
    LayerWeights,
    Linear,
    Model,
    SegmentWeights,
    pack,
    packable,
)

log = logging.getLogger("edgespec.torch")


class PackedMatrix(NamedTuple):
    """A matrix of int8 or int4 blocks."""

    values: Tensor
    """[inputs, outputs] int8."""
    scales: Tensor
    """[inputs / GROUP_INPUTS, outputs] float32."""
    bits: int
    """8 or 4."""

    def floats(self) -> Tensor:
        """Returns float32 [inputs, outputs]: one product, rounded once, like `DequantizeLinear`."""
        grouped = self.values.float().view(-1, GROUP_INPUTS, self.values.shape[1])
        return (grouped * self.scales[:, None]).view(self.values.shape)


class GraphFile:
    """The initialisers of one ONNX file."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._values = ir.load(path).graph.initializers

    def __contains__(self, name: str) -> bool:
        return name in self._values

    def starting(self, prefix: str) -> str:
        """Returns the first name with this prefix. Raises `BundleError` if there is none."""
        name = next((name for name in sorted(self._values) if name.startswith(prefix)), None)
        if name is None:
            raise self._lacks(prefix)
        return name

    def kind(self, name: str) -> ir.DataType:
        return self._stored(name).dtype

    def tensor(self, name: str) -> Tensor:
        """Returns a copy of an initialiser, int4 as int8."""
        array = numbers(self._stored(name))
        kept = array.dtype in (np.float32, np.float16, np.int8)
        return torch.from_numpy(np.array(array, array.dtype if kept else np.int8))

    def matrix(self, name: str) -> Tensor | PackedMatrix:
        """Returns a matrix [inputs, outputs]."""
        if f"{name}.values" not in self:
            return self.tensor(name)
        bits = 8 if self.kind(f"{name}.values") == ir.DataType.INT8 else 4
        return PackedMatrix(self.tensor(f"{name}.values"), self.tensor(f"{name}.scales"), bits)

    def _stored(self, name: str) -> ir.TensorProtocol:
        value = self._values.get(name)
        if value is None or value.const_value is None:
            raise self._lacks(name)
        return value.const_value

    def _lacks(self, name: str) -> BundleError:
        return BundleError(f"{self._path} has no weight {name}; export the bundle again")


@dataclass(frozen=True)
class Placing:
    """Device and type that the weights get."""

    device: torch.device
    dtype: torch.dtype
    packs: bool
    """True to keep int4 packed if the matrix's shape allows it."""


class Reader:
    """Reads the weights of one graph onto a device."""

    def __init__(self, path: Path, placing: Placing) -> None:
        self._file = GraphFile(path)
        self._placing = placing
        self.packed_bytes = 0
        """Bytes of the blocks that became floats."""
        self.float_bytes = 0
        """Bytes of these floats."""

    def vector(self, name: str) -> Tensor:
        return self._put(self._file.tensor(name))

    def table(self, name: str) -> Tensor:
        """Returns the tensor whose name has this prefix, in its stored type."""
        return self._file.tensor(self._file.starting(name)).to(self._placing.device)

    def linear(self, *names: str) -> Linear:
        """Returns projections of the same inputs as one matrix."""
        parts = [self._file.matrix(f"{name}.weight") for name in names]
        return self.joined(parts, self._bias(names, [_outputs(part) for part in parts]))

    def joined(self, parts: Sequence[Tensor | PackedMatrix], bias: Tensor | None = None) -> Linear:
        placing = self._placing
        blocks = [part for part in parts if isinstance(part, PackedMatrix) and part.bits == 4]
        if placing.packs and len(blocks) == len(parts):
            values = torch.cat([part.values for part in blocks], dim=1)
            if packable(values, placing.dtype):
                scales = torch.cat([part.scales for part in blocks], dim=1)
                return pack(values, scales, bias, placing.device)
        return Dense(self._floats(parts), bias)

    def rotary(self) -> tuple[Tensor, Tensor]:
        """Returns `Model.cos` and `Model.sin`."""
        cos, sin = (self._file.tensor(f"rotary.{kind}") for kind in ("cos", "sin"))
        return self._put(torch.cat((cos, cos), -1)), self._put(torch.cat((-sin, sin), -1))

    def exit(self, layer: int) -> ExitWeights:
        norm, name = self.vector("model.norm.weight"), f"exit.{layer}"
        if f"{name}.norm.weight" not in self._file:
            return ExitWeights(norm)
        adapter = self.vector(f"{name}.norm.weight")
        return ExitWeights(norm, adapter, self.linear(f"{name}.down"), self.linear(f"{name}.up"))

    def head(self, shapes: Architecture, embedding: Tensor) -> Linear:
        """Returns the output matrix. A tied float head is the embedding if the types are equal."""
        name = "model.embed_tokens.weight" if shapes.tied else "lm_head.weight"
        if f"{name}.head.values" in self._file:
            return self.joined([self._file.matrix(f"{name}.head")])
        stored = self._file.starting(f"{name}.")
        kinds = {f"torch.{self._file.kind(stored).numpy()}", str(self._placing.dtype)}
        if shapes.tied and kinds == {str(embedding.dtype)}:
            return Dense(embedding)
        return Dense(self._put(self._file.tensor(stored)))

    def _bias(self, names: Sequence[str], outputs: Sequence[int]) -> Tensor | None:
        named = [f"{name}.bias" for name in names]
        if not any(name in self._file for name in named):
            return None
        parts = [
            self._file.tensor(name).float() if name in self._file else torch.zeros(count)
            for name, count in zip(named, outputs, strict=True)
        ]
        return self._put(torch.cat(parts))

    def _floats(self, parts: Sequence[Tensor | PackedMatrix]) -> Tensor:
        inputs = _matrix(parts[0]).shape[0]
        device, dtype = self._placing.device, self._placing.dtype
        joined = torch.empty(sum(map(_outputs, parts)), inputs, dtype=dtype, device=device)
        done = 0
        for part in parts:
            cut = joined[done : done + _outputs(part)]
            done += _outputs(part)
            if isinstance(part, PackedMatrix):
                cut.copy_(part.floats().to(device).t())
                self.packed_bytes += part.values.numel() * part.bits // 8 + part.scales.nbytes
                self.float_bytes += cut.numel() * cut.itemsize
            else:
                cut.copy_(part.to(device).t())
        return joined

    def _put(self, tensor: Tensor) -> Tensor:
        return tensor.to(self._placing.device, self._placing.dtype)


def _matrix(part: Tensor | PackedMatrix) -> Tensor:
    return part.values if isinstance(part, PackedMatrix) else part


def _outputs(part: Tensor | PackedMatrix) -> int:
    return int(_matrix(part).shape[1])


def read_target(bundle: Bundle, placing: Placing) -> Model:
    """Loads the bundle's target and checks its files.

    Raises `BundleError` if a file differs from the manifest or lacks a weight.
    """
    bundle.check("target")
    target = bundle.manifest.target
    shapes = target.architecture
    readers: list[Reader] = []

    def reader(path: str) -> Reader:
        readers.append(Reader(bundle.path(path), placing))
        return readers[-1]

    segments = []
    for segment in target.segments:
        body = reader(segment.graph)
        layers = [_layer(body, number, shapes) for number in range(segment.start, segment.end)]
        exit = reader(segment.exit).exit(segment.end) if segment.exit else None
        segments.append(SegmentWeights(segment.end, layers, exit))
        if not segment.start:
            embedding, (cos, sin) = body.table("model.embed_tokens.weight."), body.rotary()
        if segment.end == shapes.layers:
            norm = body.vector("model.norm.weight")
    head = reader(target.head).head(shapes, embedding)
    _warn_unpacked(readers, placing.dtype)
    return Model(shapes, placing.dtype, embedding, cos, sin, segments, norm, head)


def _warn_unpacked(readers: Sequence[Reader], dtype: torch.dtype) -> None:
    """Logs how much memory integer blocks take as floats, if there are any."""
    packed = sum(reader.packed_bytes for reader in readers)
    floats = sum(reader.float_bytes for reader in readers)
    if packed:
        log.warning(
            "torch multiplies no blocks of integers here: %.0f MB of them became %.0f MB of %s",
            packed / 1e6, floats / 1e6, str(dtype).removeprefix("torch."),
        )  # fmt: skip


def _layer(reader: Reader, number: int, shapes: Architecture) -> LayerWeights:
    prefix = f"model.layers.{number}"
    attention, mlp = f"{prefix}.self_attn", f"{prefix}.mlp"
    return LayerWeights(
        attention_norm=reader.vector(f"{prefix}.input_layernorm.weight"),
        qkv=reader.linear(*(f"{attention}.{letter}_proj" for letter in "qkv")),
        q_norm=reader.vector(f"{attention}.q_norm.weight") if shapes.qk_norm else None,
        k_norm=reader.vector(f"{attention}.k_norm.weight") if shapes.qk_norm else None,
        out=reader.linear(f"{attention}.o_proj"),
        feed_forward_norm=reader.vector(f"{prefix}.post_attention_layernorm.weight"),
        gate_up=reader.linear(f"{mlp}.gate_proj", f"{mlp}.up_proj"),
        down=reader.linear(f"{mlp}.down_proj"),
    )
