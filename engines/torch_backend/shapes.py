"""Shapes of the decoder's computations: those of the call, or fixed ones.

A library chooses a kernel by the shape of its arguments, and another kernel adds in another order.
The last bits of a token's logits then depend on the number of tokens in the call. With fixed shapes
the library has no choice: every call is computed in pieces of one shape, padded with zeros.

* Everything except attention takes `tokens` tokens at a time.
* Attention takes `queries` tokens of each of `rows` neighbouring slots, over `keys` positions at a
  time. The parts are added with a running maximum (Milakov and Gimelshein, arXiv 1805.02867).
  Blocks beyond a token's own position change nothing: their weights are exp(-inf) = 0, and the sum
  is scaled by exp(0) = 1. Therefore the bits depend neither on the capacity nor on longer slots.

One assumption remains: a kernel at one shape gives a row the same bits at every index and with
every other content. `edgespec doctor --exactness` measures it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
from torch import Tensor
from torch.nn import functional

SPAN_STEP_TOKENS = 64
"""Attention in free shapes spans a multiple of this number of positions."""


class Place(NamedTuple):
    """Location of a call's tokens in the cache."""

    first: int
    """Index of the call's first slot in the pool."""
    positions: Tensor
    """[slots, width] int64: position of each token."""
    span: int
    """Positions to attend over: those of the call's longest slot, rounded by `ShapePolicy.span`."""


class CachedAttention(Protocol):
    """Attention of a call's tokens over a pool."""

    def __call__(self, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """Attends with `queries` [slots, width, heads, head_dim] over the pool's keys and values,
        [pool slots, kv_heads, capacity, head_dim]. Returns the shape of the queries."""


class ShapePolicy(Protocol):
    """Choice of the shapes in which a call is computed."""

    @property
    def rows(self) -> int:
        """Smallest number of slots that a pool's arrays must have."""

    def padded(self, tokens: int) -> int:
        """Returns the number of tokens, pads included, that a call of `tokens` computes."""

    def span(self, longest: int) -> int:
        """Returns the positions that attention spans if the longest slot has `longest`."""

    def each(self, function: Callable[..., Tensor], *tensors: Tensor) -> Tensor:
        """Applies `function` to tensors whose first axis is `padded` tokens."""

    def attention(self, place: Place, group: int) -> CachedAttention:
        """Makes the attention of a call, with `group` query heads for each key head."""


@dataclass(frozen=True)
class FreeShapes:
    """Shapes of the call: as fast as the libraries, but not exact."""

    rows: int = 1

    def padded(self, tokens: int) -> int:
        return tokens

    def span(self, longest: int) -> int:
        return -(-longest // SPAN_STEP_TOKENS) * SPAN_STEP_TOKENS

    def each(self, function: Callable[..., Tensor], *tensors: Tensor) -> Tensor:
        return function(*tensors)

    def attention(self, place: Place, group: int) -> CachedAttention:
        return _FreeAttention(place, group)


class _FreeAttention:
    """Attention by `scaled_dot_product_attention`.

    Queries that share a key head are passed as further tokens, so that no key is copied and kernels
    without support for grouped queries can be used.
    """

    def __init__(self, place: Place, group: int) -> None:
        self._group = group
        count = len(place.positions)
        self._slots = slice(place.first, place.first + count)
        self._span = place.span
        reach = place.positions.repeat_interleave(group, dim=1)[:, None, :, None]
        self._unseen = torch.arange(self._span, device=reach.device) > reach
        self._bias: Tensor | None = None

    def __call__(self, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        grouped = _grouped(queries, self._group)
        keys, values = (part[self._slots, :, : self._span] for part in (keys, values))
        if self._bias is None:  # in the queries' type, or each layer would convert it again
            empty = torch.zeros(self._unseen.shape, dtype=queries.dtype, device=queries.device)
            self._bias = empty.masked_fill_(self._unseen, -torch.inf)
        attended = functional.scaled_dot_product_attention(grouped, keys, values, self._bias)
        return _ungrouped(attended, queries.shape[1])


def _grouped(queries: Tensor, group: int) -> Tensor:
    """[slots, width, heads, head_dim] -> [slots, kv_heads, width * group, head_dim]."""
    slots, width, heads, size = queries.shape
    split = queries.view(slots, width, heads // group, group, size)
    return split.transpose(1, 2).reshape(slots, heads // group, width * group, size)


def _ungrouped(attended: Tensor, width: int) -> Tensor:
    """[slots, kv_heads, width * group, head_dim] -> [slots, width, heads, head_dim]."""
    slots, kv_heads, _, size = attended.shape
    split = attended.view(slots, kv_heads, width, -1, size).transpose(1, 2)
    return split.reshape(slots, width, -1, size)


@dataclass(frozen=True)
class FixedShapes:
    """Fixed shapes (see the module): exact, at the price of computing pads."""

    tokens: int
    """Tokens of a piece."""
    rows: int
    """Slots of an attention window."""
    queries: int
    """Tokens of each slot in an attention tile."""
    keys: int = 256
    """Positions of an attention block."""

    def padded(self, tokens: int) -> int:
        return -(-tokens // self.tokens) * self.tokens

    def span(self, longest: int) -> int:
        return -(-longest // self.keys) * self.keys

    def each(self, function: Callable[..., Tensor], *tensors: Tensor) -> Tensor:
        pieces = zip(*(torch.split(tensor, self.tokens) for tensor in tensors), strict=True)
        return torch.cat([function(*piece) for piece in pieces])

    def attention(self, place: Place, group: int) -> CachedAttention:
        return _FixedAttention(self, place, group)


class _FixedAttention:
    """Attention in windows of `rows` slots, tiles of `queries` tokens and blocks of `keys`
    positions."""

    def __init__(self, shapes: FixedShapes, place: Place, group: int) -> None:
        self._shapes, self._place, self._group = shapes, place, group
        self._blocks = place.span // shapes.keys
        self._unseen: dict[tuple[int, int], Tensor] = {}

    def __call__(self, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        shapes, (count, width) = self._shapes, queries.shape[:2]
        attended = torch.empty_like(queries)
        scaled = queries * queries.shape[-1] ** -0.5
        for row in range(0, count, shapes.rows):
            # A window that would leave the pool begins earlier; its extra slots are ignored.
            begin = min(self._place.first + row, len(keys) - shapes.rows)
            rows = slice(row, min(row + shapes.rows, count))
            window = slice(begin, begin + shapes.rows)
            shift = self._place.first + row - begin
            for token in range(0, width, shapes.queries):
                tokens = slice(token, min(token + shapes.queries, width))
                tile = queries.new_zeros(shapes.rows, shapes.queries, *queries.shape[2:])
                inner = (
                    slice(shift, shift + rows.stop - rows.start),
                    slice(tokens.stop - tokens.start),
                )
                tile[inner] = scaled[rows, tokens]
                found = self._tile((row, token), tile, keys[window], values[window], inner)
                attended[rows, tokens] = found[inner]
        return attended

    def _tile(
        self,
        corner: tuple[int, int],
        tile: Tensor,
        keys: Tensor,
        values: Tensor,
        inner: tuple[slice, slice],
    ) -> Tensor:
        """Attends with a scaled tile [rows, queries, heads, head_dim] over a window's keys and
        values. `corner` is (row, token) of the tile in the call, `inner` its part with tokens."""
        rows, width = tile.shape[:2]
        grouped = _grouped(tile, self._group)
        flat, keys, values = (part.flatten(0, 1) for part in (grouped, keys, values))
        unseen = self._mask(corner, inner)
        most = torch.full((*flat.shape[:2], 1), -torch.inf, device=flat.device)
        weight = torch.zeros_like(most)
        total = torch.zeros(flat.shape, device=flat.device)
        for block in range(self._blocks):
            part = slice(block * self._shapes.keys, (block + 1) * self._shapes.keys)
            scores = torch.bmm(flat, keys[:, part].transpose(1, 2)).float()
            scores = scores.view(rows, -1, *scores.shape[1:]).masked_fill(
                unseen[..., part], -torch.inf
            ).flatten(0, 1)  # fmt: skip
            higher = torch.maximum(most, scores.amax(-1, keepdim=True))
            shrink, weights = (most - higher).exp(), (scores - higher).exp()
            weight = weight * shrink + weights.sum(-1, keepdim=True)
            added = torch.bmm(weights.to(values.dtype), values[:, part]).float()
            total, most = total * shrink + added, higher
        found = (total / weight).to(tile.dtype)
        return _ungrouped(found.view(rows, -1, *found.shape[1:]), width)

    def _mask(self, corner: tuple[int, int], inner: tuple[slice, slice]) -> Tensor:
        """Returns the mask of a tile, [rows, 1, queries * group, blocks * keys], True for hidden
        positions. All layers share it. A padded query sees the first position, since a query that
        sees none would give NaN."""
        if corner not in self._unseen:
            (row, token), (rows, tokens) = corner, inner
            taken = self._place.positions[
                row : row + rows.stop - rows.start, token : token + tokens.stop
            ]
            reach = taken.new_zeros(self._shapes.rows, self._shapes.queries)
            reach[inner] = taken
            reach = reach.repeat_interleave(self._group, dim=1)[:, None, :, None]
            positions = torch.arange(self._blocks * self._shapes.keys, device=reach.device)
            self._unseen[corner] = positions > reach
        return self._unseen[corner]
