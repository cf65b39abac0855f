"""The torch back end as a runner (`engines/staged.py`): one call through one segment."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from types import MappingProxyType
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional

from engines.cache.pools import CAPACITIES, CacheTensor, GrowingPool, MakePool
from engines.calls import Call
from engines.staged import Inputs, Stage
from engines.torch_backend.device import NUMPY, TorchStore, fetched, threads, torch_errors
from engines.torch_backend.graphs import DirectCalls, GraphReplay
from engines.torch_backend.model import Model, best
from engines.torch_backend.shapes import (
    CachedAttention,
    FixedShapes,
    FreeShapes,
    Place,
    ShapePolicy,
)

FIXED: Mapping[str, FixedShapes] = MappingProxyType(
    {"cpu": FixedShapes(tokens=16, rows=1, queries=8), "cuda": FixedShapes(128, rows=4, queries=32)}
)
"""Shapes by device. On a CPU pads cost computing time, so pieces are small. A GPU reads the weights
once for each piece, so pieces are as large as costs little more than this reading: 128 operations
for each byte of 16-bit weights, where the cards of `bench/gpu/cards.json` can do 153 to 419. Tiles
of attention are larger too, since each costs a dozen launches. The values for CUDA are estimates;
`edgespec bench gpu` measures them."""
MAX_GRAPH_TOKENS = 320
"""Tokens of a call up to which CUDA graphs are recorded (64 rows of five). Larger chunks of prompts
rarely repeat a shape."""


@dataclass(frozen=True)
class TorchSettings:
    """Settings of the torch back end."""

    threads: int = 1
    """CPU threads; 0 leaves torch's number."""
    slots: int = 16
    device: str = "auto"
    """`cuda`, `cpu`, or `auto`: CUDA if torch has it."""
    floats: str = "auto"
    """`fp32`, `fp16`, `bf16`, or `auto`: the bundle's type, and for integers fp32 on a CPU and bf16
    on CUDA."""
    exact: bool = True
    """Use fixed shapes, so that a token's bits do not depend on the other tokens of a batch."""
    packed: bool | None = None
    """Keep int4 weights packed, with bf16 activations; None: only on CUDA."""
    shapes: FixedShapes | None = None
    """Fixed shapes; None takes `FIXED` for the device."""
    capacities: tuple[int, ...] = CAPACITIES


class TorchRunner:
    """Runs calls through the segments of a model."""

    def __init__(self, model: Model, settings: TorchSettings) -> None:
        self.model = model
        self.settings = settings
        self.shapes = _shapes(model.device, settings)
        self.stages = [Stage(part.end, part.exit is not None) for part in model.segments]
        shapes, kind = model.architecture, NUMPY[model.dtype]
        self.tensors = [
            CacheTensor(f"cache_{part}.{layer}", shapes.kv_heads, shapes.head_dim, kind)
            for layer in range(shapes.layers)
            for part in ("key", "value")
        ]
        store = TorchStore(model.device, self.shapes.rows)
        self.make_pool: MakePool = partial(GrowingPool, store)
        cuda = model.device.type == "cuda"
        self.scratch = torch.cuda.graph_pool_handle() if cuda else None
        """Scratch memory of the CUDA graphs; None without CUDA."""

    def frame(self, call: Call) -> TorchFrame:
        with torch_errors():
            return TorchFrame(self, call)


def _shapes(device: torch.device, settings: TorchSettings) -> ShapePolicy:
    if not settings.exact:
        return FreeShapes()
    fixed = settings.shapes or FIXED[device.type]
    if any(capacity % fixed.keys for capacity in settings.capacities):
        raise ValueError(f"capacities {settings.capacities} are no multiples of {fixed.keys}")
    return fixed


class TorchFrame:
    """Buffers for calls of one shape. `_hidden` carries hidden states from segment to segment."""

    def __init__(self, runner: TorchRunner, call: Call) -> None:
        self.inputs = Inputs(call.count, call.width)
        self._runner, self._pool, self._first = runner, call.pool, call.first
        model, shapes = runner.model, runner.shapes
        self._tokens = call.count * call.width
        padded = shapes.padded(self._tokens)
        device = model.device
        self._ids = torch.zeros(padded, dtype=torch.long, device=device)
        self._angles = torch.zeros_like(self._ids)
        """Position of the rotary embedding of each token."""
        self._places = torch.zeros(call.count, call.width, dtype=torch.long, device=device)
        """Position in the cache that each token is written to."""
        self._rows = torch.arange(call.count, device=device)[:, None] + call.first
        self._select = torch.zeros(padded, dtype=torch.long, device=device)
        size = model.architecture.hidden
        self._hidden = torch.zeros(padded, size, dtype=model.dtype, device=device)
        self._span = 0
        """Positions that attention spans."""
        graphs = runner.scratch is not None and self._tokens <= MAX_GRAPH_TOKENS
        self._replay = GraphReplay[Any](runner.scratch) if graphs else DirectCalls[Any]()

    def run(self, stage: int, select: npt.NDArray[np.int64]) -> Sequence[npt.NDArray[Any]]:
        with torch.inference_mode(), threads(self._runner.settings.threads), torch_errors():
            if stage == 0:
                self._upload()
            selected = self._runner.shapes.padded(len(select)) if len(select) else 0
            self._select[: len(select)].copy_(torch.from_numpy(select))
            key = (stage, self._span, selected)
            outputs = self._replay.run(key, partial(self._compute, stage, selected))
            return fetched([tensor[: len(select)] for tensor in outputs])

    def _upload(self) -> None:
        inputs = self.inputs
        width = inputs.ids.shape[1]
        places = inputs.starts[:, None] + np.arange(width)
        self._ids[: self._tokens].copy_(torch.from_numpy(inputs.ids.reshape(-1)))
        self._angles[: self._tokens].copy_(torch.from_numpy(inputs.positions.reshape(-1)))
        self._places.copy_(torch.from_numpy(places))
        longest = int(inputs.lengths.max())
        self._span = min(self._runner.shapes.span(longest), self._pool.capacity)

    def _compute(self, stage: int, selected: int) -> Sequence[Tensor]:
        """Computes a segment, and a head for `selected` tokens.

        Kernel launches depend only on the key in `run`.
        """
        model, shapes = self._runner.model, self._runner.shapes
        segment = model.segments[stage]
        x = self._hidden if stage else shapes.each(model.embed, self._ids)
        rotary = model.rotary(self._angles)
        place = Place(self._first, self._places, self._span)
        group = model.architecture.heads // model.architecture.kv_heads
        attention = shapes.attention(place, group)
        first = model.segments[stage - 1].end if stage else 0
        for number, layer in enumerate(segment.layers, first):
            qkv = shapes.each(partial(model.project, layer), x, *rotary)
            attended = self._attend(number, attention, qkv[: self._tokens])
            padded = functional.pad(attended, (0, 0, 0, len(x) - len(attended)))
            x = shapes.each(partial(model.finish, layer), x, padded)
        self._hidden.copy_(x)
        if not selected:
            return ()
        exit = None if stage == len(model.segments) - 1 else segment.exit
        picked = self._hidden[self._select[:selected]]
        return best(shapes.each(partial(model.logits, exit), picked))

    def _attend(self, layer: int, attention: CachedAttention, qkv: Tensor) -> Tensor:
        """Writes new keys and values, then attends. Returns [tokens, heads * head_dim]."""
        shapes = self._runner.model.architecture
        parts = [shapes.heads, shapes.kv_heads, shapes.kv_heads]
        split = qkv.view(*self._places.shape, *qkv.shape[1:])
        queries, *new = torch.split(split, parts, dim=2)
        cached = [self._pool.arrays[f"cache_{part}.{layer}"] for part in ("key", "value")]
        for cache, part in zip(cached, new, strict=True):
            cache[self._rows, :, self._places] = part
        return attention(queries, *cached).flatten(2).flatten(0, 1)
