"""A decoder in torch for training, with the same arithmetic as the graphs that `export` writes.

Its parameters have Hugging Face names, so `state_dict` is a checkpoint. Weights are float32. Matrix
products run in bfloat16 where `autocast` finds that faster.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Iterable, Sequence
from contextlib import AbstractContextManager
from functools import cache

import msgspec
import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from edgespec.architecture import Architecture
from edgespec.checkpoint import Checkpoint, Rope

_FASTER_RATIO = 0.7
"""Time of bfloat16 over that of float32, below which bfloat16 is used on a CPU."""


class AnswerCache:
    """Keys and values of `rows` unfinished answers, written in place.

    `lengths` [rows] int64 is the number of cached positions of each row.
    """

    def __init__(
        self, shapes: Architecture, rows: int, capacity: int, device: torch.device
    ) -> None:
        shape = (shapes.layers, rows, shapes.kv_heads, capacity, shapes.head_dim)
        half = torch.is_autocast_enabled(device.type)
        dtype = torch.get_autocast_dtype(device.type) if half else torch.float32
        self.keys = torch.zeros(shape, dtype=dtype, device=device)
        self.values = torch.zeros_like(self.keys)
        self.lengths = torch.zeros(rows, dtype=torch.long, device=device)

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Attend with one new token per row, q [rows, heads, 1, head_dim].

        The products run over the full capacity. A slice would be copied first, which costs twice
        the products themselves (measured in bfloat16 on a CPU).
        """
        rows = torch.arange(len(self.lengths), device=q.device)
        self.keys[layer, rows, :, self.lengths] = k[:, :, 0].to(self.keys.dtype)
        self.values[layer, rows, :, self.lengths] = v[:, :, 0].to(self.keys.dtype)
        keys, values = self.keys[layer], self.values[layer]
        batch, heads, _, width = q.shape
        grouped = q.to(keys.dtype).view(batch, keys.shape[1], -1, width)
        scores = (grouped @ keys.transpose(-1, -2)).float() * width**-0.5
        unseen = torch.arange(keys.shape[2], device=q.device)[None] > self.lengths[:, None]
        weights = scores.masked_fill(unseen[:, None, None], -torch.inf).softmax(-1)
        attended: Tensor = weights.to(values.dtype) @ values
        return attended.view(batch, heads, 1, width)


class RmsNorm(nn.Module):
    def __init__(self, width: int, epsilon: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self._epsilon = epsilon

    def forward(self, x: Tensor) -> Tensor:
        return functional.rms_norm(x.float(), self.weight.shape, self.weight, self._epsilon)


class DecoderAttention(nn.Module):
    def __init__(self, shapes: Architecture, biases: Collection[str]) -> None:
        super().__init__()
        queries, keys = shapes.heads * shapes.head_dim, shapes.kv_heads * shapes.head_dim
        self.q_proj = nn.Linear(shapes.hidden, queries, "q_proj" in biases)
        self.k_proj = nn.Linear(shapes.hidden, keys, "k_proj" in biases)
        self.v_proj = nn.Linear(shapes.hidden, keys, "v_proj" in biases)
        self.o_proj = nn.Linear(queries, shapes.hidden, "o_proj" in biases)
        if shapes.qk_norm:
            self.q_norm = RmsNorm(shapes.head_dim, shapes.norm_epsilon)
            self.k_norm = RmsNorm(shapes.head_dim, shapes.norm_epsilon)
        self._shapes = shapes

    def forward(
        self, x: Tensor, cos: Tensor, sin: Tensor, layer: int, cache: AnswerCache | None
    ) -> Tensor:
        batch, tokens, _ = x.shape
        shape = (batch, tokens, -1, self._shapes.head_dim)
        q, k, v = (p(x).view(shape) for p in (self.q_proj, self.k_proj, self.v_proj))
        if self._shapes.qk_norm:
            q, k = self.q_norm(q), self.k_norm(k)
        q, k, v = (t.transpose(1, 2) for t in (q, k, v))
        q, k = (_rotate(t, cos, sin).to(v.dtype) for t in (q, k))
        if cache is not None:
            y = cache.attend(layer, q, k, v)
        else:
            group = self._shapes.heads // self._shapes.kv_heads
            k, v = (t.repeat_interleave(group, dim=1) for t in (k, v))
            y = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        out: Tensor = self.o_proj(y.transpose(1, 2).reshape(batch, tokens, -1))
        return out


class DecoderFeedForward(nn.Module):
    def __init__(self, shapes: Architecture, biases: Collection[str]) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(shapes.hidden, shapes.intermediate, "gate_proj" in biases)
        self.up_proj = nn.Linear(shapes.hidden, shapes.intermediate, "up_proj" in biases)
        self.down_proj = nn.Linear(shapes.intermediate, shapes.hidden, "down_proj" in biases)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.down_proj(functional.silu(self.gate_proj(x)) * self.up_proj(x))
        return y


class DecoderLayer(nn.Module):
    def __init__(self, shapes: Architecture, biases: Collection[str]) -> None:
        super().__init__()
        self.input_layernorm = RmsNorm(shapes.hidden, shapes.norm_epsilon)
        self.self_attn = DecoderAttention(shapes, biases)
        self.post_attention_layernorm = RmsNorm(shapes.hidden, shapes.norm_epsilon)
        self.mlp = DecoderFeedForward(shapes, biases)

    def forward(
        self, x: Tensor, cos: Tensor, sin: Tensor, layer: int, cache: AnswerCache | None
    ) -> Tensor:
        x = x + self.self_attn(self.input_layernorm(x), cos, sin, layer, cache)
        y: Tensor = x + self.mlp(self.post_attention_layernorm(x))
        return y


class DecoderBody(nn.Module):
    """The part that a checkpoint names `model`."""

    def __init__(self, shapes: Architecture, biases: Collection[str]) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(shapes.vocabulary, shapes.hidden)
        self.layers = nn.ModuleList(DecoderLayer(shapes, biases) for _ in range(shapes.layers))
        self.norm = RmsNorm(shapes.hidden, shapes.norm_epsilon)


class Decoder(nn.Module):
    """A dense decoder. `biases` names the projections with a bias, such as `q_proj`."""

    frequencies: Tensor

    def __init__(self, shapes: Architecture, rope: Rope, biases: Collection[str] = ()) -> None:
        super().__init__()
        self.architecture = shapes
        self.rope = rope
        self.model = DecoderBody(shapes, biases)
        if not shapes.tied:
            self.lm_head = nn.Linear(shapes.hidden, shapes.vocabulary, bias=False)
        frequencies = torch.from_numpy(np.asarray(rope.inverse_frequencies, np.float32))
        self.register_buffer("frequencies", frequencies, persistent=False)

    @property
    def output(self) -> Tensor:
        """The output matrix [vocabulary, hidden]."""
        return self.model.embed_tokens.weight if self.architecture.tied else self.lm_head.weight

    def rotary(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """Return cosines and sines [batch or 1, 1, tokens, head_dim / 2] of `positions`."""
        angles = positions.float()[..., None] * self.frequencies
        factor = self.rope.attention_factor
        return (angles.cos() * factor)[:, None], (angles.sin() * factor)[:, None]

    def hidden(
        self, ids: Tensor, cache: AnswerCache | None = None, keep: Collection[int] = ()
    ) -> tuple[Tensor, dict[int, Tensor]]:
        """Return the state before the final norm, and the state after each layer in `keep`.

        `ids` is [batch, tokens] int64, each row from position 0, or one token per row with a cache.
        Rows may be padded on the right. States are [batch, tokens, hidden]. Layers count from 1.
        """
        if cache is None:
            positions = torch.arange(ids.shape[1], device=ids.device)[None]
        else:
            positions = cache.lengths[:, None]
        cos, sin = self.rotary(positions)
        x = self.model.embed_tokens(ids)
        kept = {}
        for number, layer in enumerate(self.model.layers):
            x = layer(x, cos, sin, number, cache)
            if number + 1 in keep:
                kept[number + 1] = x
        return x, kept

    def through(self, x: Tensor, layers: Iterable[int]) -> Tensor:
        """Run `x` [rows, tokens, hidden], each row from position 0, through `layers` in turn."""
        cos, sin = self.rotary(torch.arange(x.shape[1], device=x.device)[None])
        for number in layers:
            x = self.model.layers[number](x, cos, sin, number, None)
        return x

    def features(self, ids: Tensor, cache: AnswerCache | None = None) -> Tensor:
        """Return the last state after the final norm, [batch, tokens, hidden]."""
        features: Tensor = self.model.norm(self.hidden(ids, cache)[0])
        return features

    def logits(self, features: Tensor) -> Tensor:
        return functional.linear(features, self.output)


def load(checkpoint: Checkpoint, layers: Sequence[int] | None = None) -> Decoder:
    """Load a checkpoint in float32, or only the given `layers`, in that order."""
    shapes = checkpoint.architecture
    chosen = list(range(shapes.layers)) if layers is None else list(layers)
    names = checkpoint.names()
    biases = {name.split(".")[-2] for name in names if name.endswith(".bias")}
    fewer = msgspec.structs.replace(shapes, layers=len(chosen))
    with torch.device("meta"):
        decoder = Decoder(fewer, checkpoint.rope, biases)
    frequencies = np.asarray(checkpoint.rope.inverse_frequencies, np.float32)
    decoder.frequencies = torch.from_numpy(frequencies.copy())
    state = {}
    for name in decoder.state_dict():
        parts = name.split(".")
        if parts[:2] == ["model", "layers"]:
            parts[2] = str(chosen[int(parts[2])])
        tensor = checkpoint.tensor(".".join(parts)).astype(np.float32)
        state[name] = torch.from_numpy(np.ascontiguousarray(tensor))
    decoder.load_state_dict(state, assign=True)
    return decoder


def autocast(device: torch.device) -> AbstractContextManager[object]:
    """Run matrix products in bfloat16 on CUDA, and on a CPU where that is faster."""
    half = device.type == "cuda" or _faster_in_half()
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=half)


@cache
def _faster_in_half() -> bool:
    """Return True if bfloat16 products are clearly faster than float32 on this CPU (takes 10 ms).

    A CPU without the instructions (AVX-512 BF16, AMX, Arm's BF16) is slower with bfloat16.
    """
    times_s = {}
    for dtype in (torch.float32, torch.bfloat16):
        a = torch.ones(512, 512, dtype=dtype)
        spent = []
        for _ in range(5):
            before = time.perf_counter()
            a @ a
            spent.append(time.perf_counter() - before)
        times_s[dtype] = min(spent)
    return times_s[torch.bfloat16] < _FASTER_RATIO * times_s[torch.float32]


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate the halves of the last axis against each other, as in Hugging Face models."""
    first, second = x.float().chunk(2, dim=-1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)
