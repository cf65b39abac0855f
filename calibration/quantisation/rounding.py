"""Rounding one matrix to blocks of int4 or int8, using the second moments H of its inputs.

1. The scales are chosen first, one for 32 consecutive inputs of an output ("static groups"), so
   that the order of rounding does not matter to the format. Each block takes the clipping ratio
   with the least error under its part of H.
2. Columns are rounded one by one, in descending order of H[j, j]. The remaining columns compensate
   the error of each rounding (GPTQ, arXiv 2210.17323).
3. Integers are improved one by one (coordinate descent, as in QuantEase, arXiv 2309.01885), scales
   are fitted to them by least squares, and the integers are improved again. The result has 13 %
   less error on SmolLM2-135M than GPTQ alone, in three times its time.

Scales are rounded to float16 before they are used.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from edgespec.checkpoint import BLOCK_INPUTS, Blocks

Bits = Literal[4, 8]
_DIVISORS = {4: tuple(6.0 + 0.5 * step for step in range(9)), 8: (127.0, 131.0, 135.0, 140.0)}
"""Largest weight of a block over its scale, by bits; integers out of range are clipped."""
DAMPING_RATIO = 0.01
"""Fraction of the mean of H's diagonal that is added to it."""
_PANEL_COLUMNS = 128
"""Columns whose corrections to the remaining ones are applied at once."""
_DESCENT_PASSES = 2
"""Passes of coordinate descent, before and after the scales are fitted again."""
_SCRATCH_FLOATS = 2**24
"""Numbers held at once while scales are fitted."""
_LEAST_FLOAT16 = 2.0**-24
"""The least positive float16; a scale is never 0."""


def floats(blocks: Blocks) -> Tensor:
    """Convert the integers to float32 [out, in]."""
    scales = torch.from_numpy(blocks.scales).repeat_interleave(BLOCK_INPUTS, dim=1)
    return torch.from_numpy(blocks.values).float() * scales


class Rounder:
    """Rounds the matrices that have the same input."""

    def __init__(self, moments: Tensor) -> None:
        """Prepare for `moments`, the mean over tokens of x xT, float32 [inputs, inputs]."""
        dead = moments.diagonal() <= 0
        own = moments.double()
        own.diagonal()[dead] = own.diagonal().mean().clamp_min(1e-12)
        own.diagonal().add_(DAMPING_RATIO * own.diagonal().mean())
        self._own = own.float()
        self._order = own.diagonal().argsort(descending=True)
        inverse = torch.cholesky_inverse(torch.linalg.cholesky(own))
        sorted_inverse = inverse[self._order][:, self._order]
        self._factor = torch.linalg.cholesky(sorted_inverse, upper=True).float()

    def round(self, weight: Tensor, bits: Bits) -> Blocks:
        """Round `weight`, float32 [out, in]."""
        scales = _scales(weight, self._own, bits)
        values = self._descend(weight, self._columns(weight, scales, bits), scales, bits)
        scales = self._refit(weight, values, scales)
        values = self._descend(weight, values, scales, bits)
        return _blocks(values, scales, bits)

    def _columns(self, weight: Tensor, scales: Tensor, bits: Bits) -> Tensor:
        """Return integers [out, in] as floats. Columns are processed as contiguous rows."""
        low, high = _range(bits)
        left = weight.T[self._order].contiguous()
        steps = scales.T[self._order // BLOCK_INPUTS].contiguous()
        rounded = torch.empty_like(left)
        for start in range(0, len(left), _PANEL_COLUMNS):
            stop = min(start + _PANEL_COLUMNS, len(left))
            errors = torch.empty_like(left[start:stop])
            for i in range(start, stop):
                rounded[i] = (left[i] / steps[i]).round_().clamp_(low, high)
                errors[i - start] = (left[i] - rounded[i] * steps[i]) / self._factor[i, i]
                after = self._factor[i, i + 1 : stop]
                left[i + 1 : stop].addr_(after, errors[i - start], alpha=-1)
            left[stop:] -= self._factor[start:stop, stop:].T @ errors
        values = torch.empty_like(rounded)
        values[self._order] = rounded
        return values.T.contiguous()

    def _descend(self, weight: Tensor, values: Tensor, scales: Tensor, bits: Bits) -> Tensor:
        """Set each integer in turn to the best value, given all others."""
        low, high = _range(bits)
        steps = scales.T.repeat_interleave(BLOCK_INPUTS, dim=0)
        rounded = values.T.contiguous()
        slope = self._own @ (rounded * steps - weight.T)
        for _ in range(_DESCENT_PASSES):
            for j in self._order.tolist():
                best = rounded[j] - slope[j] / (self._own[j, j] * steps[j])
                best = best.round_().clamp_(low, high)
                slope.addr_(self._own[:, j], (best - rounded[j]) * steps[j])
                rounded[j] = best
        return rounded.T.contiguous()

    def _refit(self, weight: Tensor, values: Tensor, scales: Tensor) -> Tensor:
        """Return the best scales for these integers; the old one where the best is not positive."""
        width = weight.shape[1]
        groups = width // BLOCK_INPUTS
        parts = self._own.view(groups, BLOCK_INPUTS, width)
        found = []
        at_once = max(1, _SCRATCH_FLOATS // (groups * width))
        rows = (torch.split(all_rows, at_once) for all_rows in (values, scales, weight))
        for some, old, goal in zip(*rows, strict=True):
            blocks = some.view(len(some), groups, BLOCK_INPUTS)
            pulled = torch.einsum("rgi,gin->rgn", blocks, parts)
            curvature = (
                pulled.view(len(some), groups, groups, BLOCK_INPUTS) * blocks[:, None]
            ).sum(-1)
            ridge = curvature.diagonal(dim1=1, dim2=2).mean(1).clamp_min(_LEAST_FLOAT16) * 1e-6
            curvature += ridge[:, None, None] * torch.eye(groups, device=weight.device)
            fitted = torch.linalg.solve(curvature, (pulled @ goal[..., None])[..., 0])
            fitted = fitted.half().float()
            usable = fitted.isfinite() & (fitted > 0)
            found.append(torch.where(usable, fitted, old))
        return torch.cat(found)


def plain(weight: Tensor, bits: Bits) -> Blocks:
    """Round `weight` [out, in] without regard to its inputs."""
    same = torch.eye(weight.shape[1], device=weight.device)
    scales = _scales(weight, same, bits)
    values = (weight / scales.repeat_interleave(BLOCK_INPUTS, dim=1)).round_().clamp_(*_range(bits))
    return _blocks(values, scales, bits)


def _scales(weight: Tensor, own: Tensor, bits: Bits) -> Tensor:
    """Return the scale of each block with the least error under its part of `own`.

    The result is float32 [out, in / 32] of float16 values.
    """
    low, high = _range(bits)
    blocks = weight.view(len(weight), -1, BLOCK_INPUTS)
    groups = torch.arange(weight.shape[1], device=weight.device).view(-1, BLOCK_INPUTS)
    parts = own[groups[:, :, None], groups[:, None, :]]
    largest = blocks.abs().amax(-1)
    best = torch.full_like(largest, torch.inf)
    chosen = torch.ones_like(largest)
    for divisor in _DIVISORS[bits]:
        scale = (largest / divisor).half().float().clamp_min(_LEAST_FLOAT16)
        error = (blocks / scale[..., None]).round_().clamp_(low, high) * scale[..., None] - blocks
        cost = torch.einsum("rgi,gij,rgj->rg", error, parts, error)
        better = cost < best
        best = torch.where(better, cost, best)
        chosen = torch.where(better, scale, chosen)
    return chosen


def _range(bits: Bits) -> tuple[int, int]:
    return -(2 ** (bits - 1)), 2 ** (bits - 1) - 1


def _blocks(values: Tensor, scales: Tensor, bits: Bits) -> Blocks:
    return Blocks(values.to(torch.int8).cpu().numpy(), scales.cpu().numpy(), bits)
