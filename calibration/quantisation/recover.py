"""Training what rounding left free: the scales of the blocks, and the norms.

The integers stay; each block's scale gets a factor, and all factors and norms are trained for
accepted tokens as a draft is, end to end (the second phase of EfficientQAT, Chen et al.,
arXiv 2407.11062). Few numbers learn fast and do not overfit, and the format stays what it was.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from calibration.corpus import Corpus
from calibration.decoder import Decoder
from calibration.distillation.training import Schedule, Trainer
from calibration.quantisation.rounding import floats
from edgespec.checkpoint import BLOCK_INPUTS, Blocks

RATE = 1.5e-3
"""Of the factors, which start at 1."""


class _Scaled(nn.Module):
    """factors [out, in / 32] -> weights [out, in]."""

    values: Tensor
    scales: Tensor

    def __init__(self, blocks: Blocks) -> None:
        super().__init__()
        self.register_buffer("values", torch.from_numpy(blocks.values), persistent=False)
        self.register_buffer("scales", torch.from_numpy(blocks.scales), persistent=False)

    def forward(self, factors: Tensor) -> Tensor:
        scales = (self.scales * factors)[..., None]
        out, groups = factors.shape
        return (self.values.view(out, groups, BLOCK_INPUTS) * scales).reshape(out, -1)


def recover(
    decoder: Decoder,
    blocks: Mapping[str, Blocks],
    corpus: Corpus,
    steps: int,
    seed: int,
    *,
    kept_out: frozenset[bytes] = frozenset(),
    advance: Callable[[int], object] = lambda _: None,
) -> dict[str, Blocks]:
    """Trains for `steps` steps; the decoder has the new weights and norms, the blocks new scales.

    The scales stay positive and representable as float16.
    """
    device = decoder.output.device
    matrices = {name: decoder.get_submodule(name.removesuffix(".weight")) for name in blocks}
    for name, matrix in matrices.items():
        scaled = _Scaled(blocks[name]).to(device)
        matrix.weight = nn.Parameter(torch.ones_like(scaled.scales))
        parametrize.register_parametrization(matrix, "weight", scaled, unsafe=True)
    schedule = Schedule(hours=1e6, steps=steps, rate=RATE)
    with tempfile.TemporaryDirectory() as folder:
        for news in Trainer(decoder, corpus, schedule, Path(folder), seed, kept_out).run():
            if news.state.step:
                advance(1)
    return {name: _settled(matrix, blocks[name]) for name, matrix in matrices.items()}


@torch.no_grad()
def _settled(matrix: nn.Module, blocks: Blocks) -> Blocks:
    """Puts the plain weight back, made of the scales as they will be stored."""
    factors = matrix.get_parameter("parametrizations.weight.original").cpu().numpy()
    scales = blocks.scales * factors.clip(0.05)
    stored = np.maximum(scales.astype(np.float16), np.float16(6e-8)).astype(np.float32)
    parametrize.remove_parametrizations(matrix, "weight", leave_parametrized=True)
    settled = blocks._replace(scales=stored)
    matrix.get_parameter("weight").copy_(floats(settled))
    return settled
