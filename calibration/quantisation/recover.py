"""Training the scales of the blocks and the norms after rounding.

The integers stay unchanged. Each block's scale gets a factor, and all factors and norms are trained
end to end like a draft (the second phase of EfficientQAT, Chen et al., arXiv 2407.11062). These few
parameters learn fast and do not overfit. The format does not change.

Training the integers too, with straight-through rounding of latent weights, was worse in runs of
hours on a CPU: they move where the gradient is mostly noise, and that undoes what GPTQ balanced
(SmolLM2-135M, all layers: agreement fell from 0.908 to 0.787 in 11 steps).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from calibration.corpus import Corpus
from calibration.decoder import Decoder
from calibration.distillation.training import Schedule, Trainer, TrainingStep
from calibration.quantisation.rounding import floats
from edgespec.checkpoint import BLOCK_INPUTS, Blocks

_LEAST_FACTOR = 0.05
_LEAST_FLOAT16 = np.float16(6e-8)


class _Scaled(nn.Module):
    """Maps factors [out, in / 32] to weights [out, in]."""

    values: Tensor
    scales: Tensor

    def __init__(self, blocks: Blocks) -> None:
        super().__init__()
        self.blocks = blocks
        self.register_buffer("values", torch.from_numpy(blocks.values), persistent=False)
        self.register_buffer("scales", torch.from_numpy(blocks.scales), persistent=False)

    def forward(self, factors: Tensor) -> Tensor:
        scales = (self.scales * factors)[..., None]
        out, groups = factors.shape
        return (self.values.view(out, groups, BLOCK_INPUTS) * scales).reshape(out, -1)

    def settled(self, factors: Tensor) -> Blocks:
        """Return the blocks as stored, with positive float16 scales."""
        scales = self.blocks.scales * factors.cpu().numpy().clip(_LEAST_FACTOR)
        stored = np.maximum(scales.astype(np.float16), _LEAST_FLOAT16).astype(np.float32)
        return self.blocks._replace(scales=stored)


class Recovery:
    """Trains the scales of `blocks` and the norms of `decoder`.

    Unfinished training is kept in `folder`, and another run continues from there. `kept_out` are
    the ids of samples that are not trained on.
    """

    def __init__(
        self,
        decoder: Decoder,
        blocks: Mapping[str, Blocks],
        corpus: Corpus,
        schedule: Schedule,
        folder: Path,
        seed: int,
        kept_out: frozenset[bytes] = frozenset(),
    ) -> None:
        self._scaled = {n: _Scaled(one).to(decoder.output.device) for n, one in blocks.items()}
        self._matrices = {n: decoder.get_submodule(n.removesuffix(".weight")) for n in blocks}
        for name, matrix in self._matrices.items():
            scaled = self._scaled[name]
            matrix.weight = nn.Parameter(torch.ones_like(scaled.scales))
            parametrize.register_parametrization(matrix, "weight", scaled, unsafe=True)
        self._trainer = Trainer(decoder, corpus, schedule, folder, seed, kept_out)
        self._trainer.resume()

    def run(self) -> Iterator[TrainingStep]:
        """Train to the end of the schedule."""
        return self._trainer.run()

    @torch.no_grad()
    def settle(self) -> dict[str, Blocks]:
        """Return the trained blocks, and make them the plain weights of the decoder."""
        return {name: self._settle(name) for name in self._matrices}

    def _settle(self, name: str) -> Blocks:
        matrix = self._matrices[name]
        factors = matrix.get_parameter("parametrizations.weight.original")
        blocks = self._scaled[name].settled(factors)
        parametrize.remove_parametrizations(matrix, "weight", leave_parametrized=True)
        matrix.get_parameter("weight").copy_(floats(blocks))
        return blocks
