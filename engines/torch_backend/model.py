"""The decoder in torch, for running: what the graphs that `export` writes compute, over a cache.

Tokens of all rows of a call lie flat, [tokens, hidden]; where a matrix product or the attention is
cut into pieces is the affair of `engines.torch_backend.shapes`. Norms compute in float32 whatever
the type of weights and activations (torch's `rms_norm` does so itself).
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
"""Consecutive inputs of an output that share a scale."""


class Linear(Protocol):
    @property
    def nbytes(self) -> int:
        """Of the weights, as a call reads them."""

    def __call__(self, x: Tensor) -> Tensor:
        """[tokens, inputs] -> [tokens, outputs]"""


@dataclass(frozen=True)
class Dense:
    weight: Tensor
    """[outputs, inputs], as libraries are fastest with, and as the embedding lies."""
    bias: Tensor | None = None

    @property
    def nbytes(self) -> int:
        return self.weight.nbytes

    def __call__(self, x: Tensor) -> Tensor:
        return functional.linear(x, self.weight, self.bias)


@dataclass(frozen=True)
class Int4:
    """Blocks of int4 that stay packed, multiplied by torch's "tinygemm" kernels.

    These take unsigned values u and, for each group of an output, a scale and a zero, and stand for
    `(u - 8) * scale + zero`; the bundle's symmetric v is u = v + 8 with zero 0. On CUDA scales are
    bfloat16, so a weight is off by up to 2**-9 of itself; the kernel is not deterministic across
    shapes, and unproven here. The form for a CPU proves the mapping.
    """

    packed: Tensor
    scales: Tensor
    """[inputs / GROUP, outputs, 2]: scale, and zero."""
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
    """Whether the kernels take a matrix `values` [inputs, outputs]: see `_inner_tiles`."""
    inputs, outputs = values.shape
    return dtype == torch.bfloat16 and not inputs % 32 and not outputs % 32


def _inner_tiles(inputs: int) -> int:
    """Tiles of 16 inputs that lie together, 8, 4 or 2: the most that divide."""
    return next(tiles for tiles in (8, 4, 2) if not inputs % (16 * tiles))


def pack(values: Tensor, scales: Tensor, bias: Tensor | None, device: torch.device) -> Int4:
    """`values` [inputs, outputs] int8 from -8 to 7, `scales` [inputs / GROUP, outputs] float."""
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
    """Of the tokens of a call, [tokens, 1, head_dim]: cosines twice, and sines with the first half
    negative, so that turning is `x * cos + swapped(x) * sin`."""

    cos: Tensor
    sin: Tensor


def rotate(x: Tensor, rotary: Rotary) -> Tensor:
    """`x` [tokens, heads, head_dim], half against half."""
    return torch.addcmul(x * rotary.cos, x.roll(x.shape[-1] // 2, -1), rotary.sin)


def swish(x: Tensor) -> Tensor:
    """`x * sigmoid(x)`; on a CPU by `exp`, whose bits do not depend on where an element lies.

    Those of torch's own `silu` do there: 208 of 5000 float32 numbers came out otherwise alone than
    among others, where its vector code meets the end of a thread's share.
    """
    if x.device.type == "cuda":
        return functional.silu(x)
    wide = x.float()
    return (wide / (1 + (-wide).exp())).to(x.dtype)


@dataclass(frozen=True)
class LayerWeights:
    """Weights of a layer. Projections that read the same are one matrix."""

    attention_norm: Tensor
    qkv: Linear
    """Outputs: the heads of queries, keys, values."""
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
    """Of an exit head: what stands between the hidden state and the head."""

    norm: Tensor
    """The final norm's weight."""
    adapter_norm: Tensor | None = None
    down: Linear | None = None
    up: Linear | None = None


@dataclass(frozen=True)
class SegmentWeights:
    end: int
    """Layers done after it."""
    layers: Sequence[LayerWeights]
    exit: ExitWeights | None = None


@dataclass(frozen=True)
class Model:
    architecture: Architecture
    dtype: torch.dtype
    """Of activations, cache and logits."""
    embedding: Tensor
    """[vocabulary, hidden]"""
    cos: Tensor
    """[context, head_dim], as `Rotary` has them; `sin` too."""
    sin: Tensor
    segments: Sequence[SegmentWeights]
    norm: Tensor
    head: Linear

    @property
    def device(self) -> torch.device:
        return self.embedding.device

    @property
    def nbytes(self) -> int:
        """Of the weights that every step reads: all but the embedding's rows."""
        layers = sum(layer.nbytes for segment in self.segments for layer in segment.layers)
        return layers + self.head.nbytes

    def embed(self, ids: Tensor) -> Tensor:
        return functional.embedding(ids, self.embedding).to(self.dtype)

    def rotary(self, positions: Tensor) -> Rotary:
        """`positions` [tokens]"""
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
        """The rest of a layer: `attended` [tokens, heads * head_dim] -> [tokens, hidden]."""
        x = x + layer.out(attended)
        gate, up = layer.gate_up(self._normed(x, layer.feed_forward_norm)).chunk(2, dim=-1)
        return x + layer.down(swish(gate) * up)

    def logits(self, exit: ExitWeights | None, x: Tensor) -> Tensor:
        """Hidden states [tokens, hidden], after the last layer or an exit's -> logits."""
        if exit is not None and exit.adapter_norm is not None:
            assert exit.down is not None and exit.up is not None
            x = x + exit.up(swish(exit.down(self._normed(x, exit.adapter_norm))))
        return self.head(self._normed(x, self.norm if exit is None else exit.norm))

    def _normed(self, x: Tensor, weight: Tensor) -> Tensor:
        return functional.rms_norm(x, weight.shape, weight, self.architecture.norm_epsilon)


class Best(NamedTuple):
    """As `Choices` has them; the logits' own type."""

    argmax: Tensor
    top_ids: Tensor
    top_logits: Tensor
    logits: Tensor


def best(logits: Tensor) -> Best:
    top = logits.topk(min(TOP, logits.shape[-1]), dim=-1)
    return Best(logits.argmax(-1), top.indices, top.values, logits)
