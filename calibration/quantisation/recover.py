"""Training the scales of the blocks and the norms after rounding.

The integers stay unchanged. Each block's scale gets a factor, and all factors and norms are trained
end to end for accepted tokens, like a draft (the second phase of EfficientQAT, Chen et al.,
arXiv 2407.11062). These few parameters learn fast and do not overfit. The format does not change.
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

LEARNING_RATE = 1.5e-3
"""Learning rate of the factors, which start at 1."""
_LEAST_FACTOR = 0.05
_LEAST_FLOAT16 = np.float16(6e-8)


class _Scaled(nn.Module):
    """Maps factors [out, in / 32] to weights [out, in]."""

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
    """Train for `steps` steps. Update the decoder, and return the blocks with new scales.

    The scales stay positive and representable as float16. `kept_out` are the ids of samples that
    are not trained on.
    """
    device = decoder.output.device
    matrices = {name: decoder.get_submodule(name.removesuffix(".weight")) for name in blocks}
    for name, matrix in matrices.items():
        scaled = _Scaled(blocks[name]).to(device)
        matrix.weight = nn.Parameter(torch.ones_like(scaled.scales))
        parametrize.register_parametrization(matrix, "weight", scaled, unsafe=True)
    schedule = Schedule(hours=1e6, steps=steps, rate=LEARNING_RATE)
    with tempfile.TemporaryDirectory() as folder:
        for step in Trainer(decoder, corpus, schedule, Path(folder), seed, kept_out).run():
            if step.state.step:
                advance(1)
    return {name: _settled(matrix, blocks[name]) for name, matrix in matrices.items()}


@torch.no_grad()
def _settled(matrix: nn.Module, blocks: Blocks) -> Blocks:
    """Replace the parametrised weight by a plain one, computed from the scales as stored."""
    factors = matrix.get_parameter("parametrizations.weight.original").cpu().numpy()
    scales = blocks.scales * factors.clip(_LEAST_FACTOR)
    stored = np.maximum(scales.astype(np.float16), _LEAST_FLOAT16).astype(np.float32)
    parametrize.remove_parametrizations(matrix, "weight", leave_parametrized=True)
    settled = blocks._replace(scales=stored)
    matrix.get_parameter("weight").copy_(floats(settled))
    return settled
