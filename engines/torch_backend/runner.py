"""How one call runs through one segment in torch."""

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
"""A CPU computes what is padded, so pieces are small. A GPU reads the weights for each piece, so
they are as large as costs little more than reading: 128 operations a byte of 16-bit weights, where
the cards of `bench/gpu/cards.json` have 153 to 419. Its tiles are larger too, since each is a dozen
launches. For CUDA these are estimates; `edgespec bench gpu` measures."""
GRAPHED = 320
"""Tokens of a call up to which CUDA graphs are recorded: 64 rows of five. A
prompt's larger chunks rarely repeat a shape."""


@dataclass(frozen=True)
class TorchSettings:
    threads: int = 1
    """Of a CPU; 0 leaves torch its own number."""
    slots: int = 16
    device: str = "auto"
    """`cuda` or `cpu`; `auto` is CUDA where torch has it."""
    floats: str = "auto"
    """`fp32`, `fp16` or `bf16`; `auto` is what the bundle stores, and for integers fp32 on a CPU
    and bf16 on CUDA."""
    exact: bool = True
    """Fixed shapes: a token's bits do not depend on its company."""
    packed: bool | None = None
    """Keep int4 as int4, with bf16; None: on CUDA."""
    shapes: FixedShapes | None = None
    """None: those of `FIXED` for the device."""
    capacities: tuple[int, ...] = CAPACITIES


class TorchRunner:
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
        """Of CUDA graphs."""

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
    """Buffers for calls of one shape. What a segment leaves to the next lies in `_hidden`."""

    def __init__(self, runner: TorchRunner, call: Call) -> None:
        self.inputs = Inputs(call.count, call.width)
        self._runner, self._pool, self._first = runner, call.pool, call.first
        model, shapes = runner.model, runner.shapes
        self._tokens = call.count * call.width
        padded = shapes.padded(self._tokens)
        device = model.device
        self._ids = torch.zeros(padded, dtype=torch.long, device=device)
        self._angles = torch.zeros_like(self._ids)
        """Of each token, the position that it is turned by."""
        self._places = torch.zeros(call.count, call.width, dtype=torch.long, device=device)
        """Of each token, the position that it is written to."""
        self._rows = torch.arange(call.count, device=device)[:, None] + call.first
        self._select = torch.zeros(padded, dtype=torch.long, device=device)
        size = model.architecture.hidden
        self._hidden = torch.zeros(padded, size, dtype=model.dtype, device=device)
        self._span = 0
        graphs = runner.scratch is not None and self._tokens <= GRAPHED
        self._replay = GraphReplay[Any](runner.scratch) if graphs else DirectCalls[Any]()

    def run(self, stage: int, select: npt.NDArray[np.int64]) -> Sequence[npt.NDArray[Any]]:
        with torch.inference_mode(), threads(self._runner.settings.threads), torch_errors():
            if stage == 0:
                self._upload()
            wanted = self._runner.shapes.padded(len(select)) if len(select) else 0
            self._select[: len(select)].copy_(torch.from_numpy(select))
            key = (stage, self._span, wanted)
            found = self._replay.run(key, partial(self._compute, stage, wanted))
            return fetched([tensor[: len(select)] for tensor in found])

    def _upload(self) -> None:
        inputs = self.inputs
        width = inputs.ids.shape[1]
        places = inputs.starts[:, None] + np.arange(width)
        self._ids[: self._tokens].copy_(torch.from_numpy(inputs.ids.reshape(-1)))
        self._angles[: self._tokens].copy_(torch.from_numpy(inputs.positions.reshape(-1)))
        self._places.copy_(torch.from_numpy(places))
        longest = int(inputs.lengths.max())
        self._span = min(self._runner.shapes.span(longest), self._pool.capacity)

    def _compute(self, stage: int, wanted: int) -> Sequence[Tensor]:
        """A segment, and a head for `choice_count` tokens. Launches depend on `run`'s key alone."""
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
        if not wanted:
            return ()
        exit = None if stage == len(model.segments) - 1 else segment.exit
        picked = self._hidden[self._select[:wanted]]
        return best(shapes.each(partial(model.logits, exit), picked))

    def _attend(self, layer: int, attention: CachedAttention, qkv: Tensor) -> Tensor:
        """Writes new keys and values and attends: [tokens, heads * head_dim]."""
        shapes = self._runner.model.architecture
        parts = [shapes.heads, shapes.kv_heads, shapes.kv_heads]
        split = qkv.view(*self._places.shape, *qkv.shape[1:])
        queries, *new = torch.split(split, parts, dim=2)
        cached = [self._pool.arrays[f"cache_{part}.{layer}"] for part in ("key", "value")]
        for whole, part in zip(cached, new, strict=True):
            whole[self._rows, :, self._places] = part
        return attention(queries, *cached).flatten(2).flatten(0, 1)
