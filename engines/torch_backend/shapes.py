"""In which shapes the decoder computes: as they come, or fixed.

A library chooses a kernel by the shape of what it is given, and another kernel adds in another
order: a token's logits then depend, in the last bits, on how many tokens came along. Fixed shapes
take the choice away. Whatever a call has, it is computed in pieces of one shape, padded with zeros:

* everything but the attention in `tokens` tokens at a time;
* attention for `queries` tokens of each of `rows` neighbouring slots, over `keys` positions at a
  time, the parts added up as they go with a running maximum (Milakov and Gimelshein, arXiv
  1805.02867). Blocks past a token's own position change nothing: they weigh exp(-inf) = 0 and scale
  by exp(0) = 1. So neither the capacity nor a longer neighbour is seen.

What is left to assume, that one kernel at one shape gives a row the same bits whatever its place
and company, is what `edgespec doctor --exactness` measures.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
from torch import Tensor
from torch.nn import functional

ROUNDED = 64
"""Positions: attention in shapes as they come spans a multiple of it."""


class Place(NamedTuple):
    """Where the tokens of a call lie in the cache."""

    first: int
    """Index of the call's first slot in the pool."""
    positions: Tensor
    """[slots, width] int64: position of each token."""
    span: int
    """Positions to attend over: those of the call's longest slot, rounded by `ShapePolicy.span`."""


class CachedAttention(Protocol):
    def __call__(self, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """`queries` [slots, width, heads, head_dim] over the pool's keys and values, [pool's slots,
        kv_heads, capacity, head_dim] -> the queries' shape."""


class ShapePolicy(Protocol):
    @property
    def rows(self) -> int:
        """Slots that a pool must have room for at least."""

    def padded(self, tokens: int) -> int:
        """Tokens that a call of so many is computed as."""

    def span(self, longest: int) -> int:
        """Positions that attention spans where the call's longest slot has so many."""

    def each(self, function: Callable[..., Tensor], *tensors: Tensor) -> Tensor:
        """`function` of tensors whose first axis is `padded` tokens."""

    def attention(self, place: Place, group: int) -> CachedAttention:
        """`group`: queries to a key."""


@dataclass(frozen=True)
class FreeShapes:
    """As they come: as fast as the libraries are, and not exact."""

    rows: int = 1

    def padded(self, tokens: int) -> int:
        return tokens

    def span(self, longest: int) -> int:
        return -(-longest // ROUNDED) * ROUNDED

    def each(self, function: Callable[..., Tensor], *tensors: Tensor) -> Tensor:
        return function(*tensors)

    def attention(self, place: Place, group: int) -> CachedAttention:
        return _Free(place, group)


class _Free:
    """`scaled_dot_product_attention`, the queries that share a key side by side as if they were
    tokens: no key is copied for them, and kernels without grouped queries of their own take it."""

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
        if self._bias is None:  # of the kernels' own type, or each layer would turn it into that
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
    slots, kv_heads, _, size = attended.shape
    split = attended.view(slots, kv_heads, width, -1, size).transpose(1, 2)
    return split.reshape(slots, width, -1, size)


@dataclass(frozen=True)
class FixedShapes:
    tokens: int
    rows: int
    queries: int
    keys: int = 256

    def padded(self, tokens: int) -> int:
        return -(-tokens // self.tokens) * self.tokens

    def span(self, longest: int) -> int:
        return -(-longest // self.keys) * self.keys

    def each(self, function: Callable[..., Tensor], *tensors: Tensor) -> Tensor:
        pieces = zip(*(torch.split(tensor, self.tokens) for tensor in tensors), strict=True)
        return torch.cat([function(*piece) for piece in pieces])

    def attention(self, place: Place, group: int) -> CachedAttention:
        return _Fixed(self, place, group)


class _Fixed:
    """Windows of `rows` slots, tiles of `queries` tokens, blocks of `keys` positions."""

    def __init__(self, shapes: FixedShapes, place: Place, group: int) -> None:
        self._shapes, self._place, self._group = shapes, place, group
        self._blocks = place.span // shapes.keys
        self._unseen: dict[tuple[int, int], Tensor] = {}

    def __call__(self, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        shapes, (count, width) = self._shapes, queries.shape[:2]
        attended = torch.empty_like(queries)
        scaled = queries * queries.shape[-1] ** -0.5
        for row in range(0, count, shapes.rows):
            # A window that would leave the pool begins earlier, and its other slots are no matter.
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
        """`tile` [rows, queries, heads, head_dim], scaled, over a window's keys and values."""
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
        """[rows, 1, queries * group, blocks * keys], made for the first layer and kept; a padded
        query sees the first position, since a row that sees none would be NaN."""
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
