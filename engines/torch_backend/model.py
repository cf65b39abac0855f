"""The decoder in torch: the computation of the graphs that `export` writes.

The tokens of all rows of a call are flat, [tokens, hidden]. `engines.torch_backend.shapes` decides
how matrix products and attention are cut into pieces. Norms compute in float32 for all types of
weights and activations (torch's `rms_norm` does so itself).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
from torch import Tensor
from torch.nn import functional

from edgespec.architecture import Architecture
from engines.base import TOP

GROUP_INPUTS = 32
"""Number of consecutive inputs of an output that share a scale."""


class Linear(Protocol):
    """A matrix product with an optional bias."""

    @property
    def nbytes(self) -> int:
        """Bytes of the weights that a call reads."""

    def __call__(self, x: Tensor) -> Tensor:
        """[tokens, inputs] -> [tokens, outputs]"""


@dataclass(frozen=True)
class Dense:
    """A matrix of floats."""

    weight: Tensor
    """[outputs, inputs]: the layout of the embedding, and the fastest one in libraries."""
    bias: Tensor | None = None

    @property
    def nbytes(self) -> int:
        return self.weight.nbytes

    def __call__(self, x: Tensor) -> Tensor:
        return functional.linear(x, self.weight, self.bias)


@dataclass(frozen=True)
class Int4:
    """A matrix of packed int4 blocks, multiplied by torch's "tinygemm" kernels.

    The kernels take unsigned values u and, for each group of an output, a scale and a zero; a
    weight is `(u - 8) * scale + zero`. The bundle's symmetric value v is u = v + 8 with zero 0.
    Scales are bfloat16, so a weight is off by up to 2**-9 of itself. On CUDA the kernel's bits
    depend on the shape; it is unproven there. The CPU kernel proves the mapping.
    """

    packed: Tensor
    scales: Tensor
    """[inputs / GROUP_INPUTS, outputs, 2]: scale and zero."""
    bias: Tensor | None = None

    @property
    def nbytes(self) -> int:
        return self.packed.nbytes + self.scales.nbytes

    def __call__(self, x: Tensor) -> Tensor:
        ops = torch.ops.aten
        cuda = x.device.type == "cuda"
        product = ops._weight_int4pack_mm if cuda else ops._weight_int4pack_mm_for_cpu
        y: Tensor = product(x, self.packed, GROUP_INPUTS, self.scales)
        return y if self.bias is None else y + self.bias


def packable(values: Tensor, dtype: torch.dtype) -> bool:
    """Return True if the int4 kernels take a matrix `values` [inputs, outputs]."""
    inputs, outputs = values.shape
    return dtype == torch.bfloat16 and not inputs % 32 and not outputs % 32


def _inner_tiles(inputs: int) -> int:
    """Returns the number of tiles of 16 inputs that are stored together: the largest of 8, 4 and 2
    that divides the inputs."""
    return next(tiles for tiles in (8, 4, 2) if not inputs % (16 * tiles))


def pack(values: Tensor, scales: Tensor, bias: Tensor | None, device: torch.device) -> Int4:
    """Packs `values` [inputs, outputs], int8 from -8 to 7, with float `scales`
    [inputs / GROUP_INPUTS, outputs]."""
    unsigned = values.to(device).t().to(torch.int32) + 8
    tiles = _inner_tiles(len(values))
    if device.type == "cuda":
        octets = (unsigned[:, ::2] << 4 | unsigned[:, 1::2]).to(torch.uint8)
        packed = torch.ops.aten._convert_weight_to_int4pack(octets, tiles)
    else:
        packed = torch.ops.aten._convert_weight_to_int4pack_for_cpu(unsigned.contiguous(), tiles)
    both = torch.stack((scales, torch.zeros_like(scales)), dim=-1)
    return Int4(packed, both.to(device, torch.bfloat16), bias)


class Rotary(NamedTuple):
    """Rotary factors of a call's tokens, [tokens, 1, head_dim].

    `cos` holds the cosines twice, `sin` the sines with a negative first half, so that the rotation
    is `x * cos + swapped_halves(x) * sin`.
    """

    cos: Tensor
    sin: Tensor


def rotate(x: Tensor, rotary: Rotary) -> Tensor:
    """Rotates `x` [tokens, heads, head_dim], the first half of head_dim against the second."""
    return torch.addcmul(x * rotary.cos, x.roll(x.shape[-1] // 2, -1), rotary.sin)


def swish(x: Tensor) -> Tensor:
    """Returns `x * sigmoid(x)`; on a CPU by `exp`, whose bits do not depend on an element's index.

    The bits of torch's `silu` depend on it on a CPU: 208 of 5000 float32 numbers were different
    alone and among others, where its vector code reaches the end of a thread's share.
    """
    if x.device.type == "cuda":
        return functional.silu(x)
    wide = x.float()
    return (wide / (1 + (-wide).exp())).to(x.dtype)


@dataclass(frozen=True)
class LayerWeights:
    """Weights of a layer. Projections with the same input are one matrix."""

    attention_norm: Tensor
    qkv: Linear
    """Its outputs are the heads of queries, keys and values."""
    q_norm: Tensor | None
    k_norm: Tensor | None
    out: Linear
    feed_forward_norm: Tensor
    gate_up: Linear
    down: Linear

    @property
    def nbytes(self) -> int:
        return sum(part.nbytes for part in (self.qkv, self.out, self.gate_up, self.down))


@dataclass(frozen=True)
class ExitWeights:
    """Weights of an exit head, between the hidden state and the head."""

    norm: Tensor
    """Weight of the final norm."""
    adapter_norm: Tensor | None = None
    down: Linear | None = None
    up: Linear | None = None


@dataclass(frozen=True)
class SegmentWeights:
    """Weights of a segment."""

    end: int
    """Number of layers that have run after it."""
    layers: Sequence[LayerWeights]
    exit: ExitWeights | None = None


@dataclass(frozen=True)
class Model:
    """A target's weights on a device, and the parts of its computation."""

    architecture: Architecture
    dtype: torch.dtype
    """Type of activations, cache and logits."""
    embedding: Tensor
    """[vocabulary, hidden]"""
    cos: Tensor
    """[context, head_dim], in the layout of `Rotary`."""
    sin: Tensor
    """[context, head_dim], in the layout of `Rotary`."""
    segments: Sequence[SegmentWeights]
    norm: Tensor
    head: Linear

    @property
    def device(self) -> torch.device:
        return self.embedding.device

    @property
    def nbytes(self) -> int:
        """Bytes of the weights that every step reads: all except the embedding."""
        layers = sum(layer.nbytes for segment in self.segments for layer in segment.layers)
        return layers + self.head.nbytes

    def embed(self, ids: Tensor) -> Tensor:
        """[tokens] -> [tokens, hidden]"""
        return functional.embedding(ids, self.embedding).to(self.dtype)

    def rotary(self, positions: Tensor) -> Rotary:
        """Returns the rotary factors of `positions` [tokens]."""
        return Rotary(self.cos[positions][:, None], self.sin[positions][:, None])

    def project(self, layer: LayerWeights, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """[tokens, hidden] -> queries, keys and values, [tokens, heads + 2 kv_heads, head_dim]."""
        shapes = self.architecture
        turned = shapes.heads + shapes.kv_heads
        y = layer.qkv(self._normed(x, layer.attention_norm)).view(len(x), -1, shapes.head_dim)
        queries_keys = y[:, :turned]
        if layer.q_norm is not None and layer.k_norm is not None:
            queries = self._normed(y[:, : shapes.heads], layer.q_norm)
            keys = self._normed(y[:, shapes.heads : turned], layer.k_norm)
            queries_keys = torch.cat((queries, keys), dim=1)
        return torch.cat((rotate(queries_keys, Rotary(cos, sin)), y[:, turned:]), dim=1)

    def finish(self, layer: LayerWeights, x: Tensor, attended: Tensor) -> Tensor:
        """Computes a layer after its attention: hidden states `x` [tokens, hidden] and `attended`
        [tokens, heads * head_dim] -> [tokens, hidden]."""
        x = x + layer.out(attended)
        gate, up = layer.gate_up(self._normed(x, layer.feed_forward_norm)).chunk(2, dim=-1)
        return x + layer.down(swish(gate) * up)

    def logits(self, exit: ExitWeights | None, x: Tensor) -> Tensor:
        """Hidden states [tokens, hidden] -> logits, by the final head or by an exit head."""
        if exit is not None and exit.adapter_norm is not None:
            assert exit.down is not None and exit.up is not None
            x = x + exit.up(swish(exit.down(self._normed(x, exit.adapter_norm))))
        return self.head(self._normed(x, self.norm if exit is None else exit.norm))

    def _normed(self, x: Tensor, weight: Tensor) -> Tensor:
        return functional.rms_norm(x, weight.shape, weight, self.architecture.norm_epsilon)


class Best(NamedTuple):
    """The fields of `Choices` as tensors."""

    argmax: Tensor
    top_ids: Tensor
    top_logits: Tensor
    logits: Tensor


def best(logits: Tensor) -> Best:
    """Selects the arg-max and the top candidates of logits [N, vocabulary]."""
    top = logits.topk(min(TOP, logits.shape[-1]), dim=-1)
    return Best(logits.argmax(-1), top.indices, top.values, logits)
