"""Training a rounded model end to end: integers, scales of the blocks, and norms.

Every weight has a latent value in units of its block's scale, which starts as near to the original
weight as its integer allows. The forward pass rounds it, and the gradient passes through the
rounding unchanged (straight-through estimator, Bengio et al., arXiv 1308.3432). Each block's scale
has a factor, with the gradient of the rounded weight (LSQ, Esser et al., arXiv 1902.08153). The
objective and the training loop are those of a draft. The format does not change.
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
from calibration.quantisation.rounding import code_range, floats
from edgespec.checkpoint import BLOCK_INPUTS, Blocks

_CODES_PER_UNIT = 4.0
"""Steps of a scale in one unit of a trained latent value. All parameters share a learning rate, so
it says how far a code moves while a scale changes by a given ratio."""
_NEAREST_BORDER = 0.49
"""Largest distance of a latent value from its integer at the start; at 0.5 it would change."""
_LEAST_FACTOR = 0.05
_LEAST_FLOAT16 = np.float16(6e-8)


class _Rounded(nn.Module):
    """Maps latent values [out, in] and factors [out, in / 32] to weights [out, in]."""

    values: Tensor
    scales: Tensor

    def __init__(self, blocks: Blocks) -> None:
        super().__init__()
        self._range = code_range(blocks.bits)
        self.register_buffer("values", torch.from_numpy(blocks.values), persistent=False)
        self.register_buffer("scales", torch.from_numpy(blocks.scales), persistent=False)

    def forward(self, latent: Tensor, factors: Tensor) -> Tensor:
        codes = latent * _CODES_PER_UNIT
        rounded = codes + (self.codes(latent) - codes).detach()
        scales = (self.scales * factors.clamp_min(_LEAST_FACTOR))[..., None]
        return (rounded.view(*factors.shape, BLOCK_INPUTS) * scales).view(latent.shape)

    def right_inverse(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        """Return latent values near `weight` that round to `values`, and factors of 1."""
        codes = weight / self.scales.repeat_interleave(BLOCK_INPUTS, dim=1)
        values = self.values.float()
        codes = codes.clamp(values - _NEAREST_BORDER, values + _NEAREST_BORDER)
        return codes / _CODES_PER_UNIT, torch.ones_like(self.scales)

    def codes(self, latent: Tensor) -> Tensor:
        return (latent * _CODES_PER_UNIT).round().clamp(*self._range)

    def settled(self, latent: Tensor, factors: Tensor) -> Blocks:
        """Return the blocks as stored, with positive float16 scales."""
        scales = (self.scales * factors.clamp_min(_LEAST_FACTOR)).cpu().numpy()
        stored = np.maximum(scales.astype(np.float16), _LEAST_FLOAT16).astype(np.float32)
        values = self.codes(latent).to(torch.int8).cpu().numpy()
        return Blocks(values, stored, 4 if self._range == code_range(4) else 8)


class Recovery:
    """Trains `blocks` in place of the matrices of `decoder`, which holds the original weights.

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
        self._decoder = decoder
        self._rounded = {n: _Rounded(one).to(decoder.output.device) for n, one in blocks.items()}
        for name, rounded in self._rounded.items():
            matrix = decoder.get_submodule(name.removesuffix(".weight"))
            parametrize.register_parametrization(matrix, "weight", rounded, unsafe=True)
        self._trainer = Trainer(decoder, corpus, schedule, folder, seed, kept_out)
        self._trainer.resume()

    def run(self) -> Iterator[TrainingStep]:
        """Train to the end of the schedule."""
        return self._trainer.run()

    @torch.no_grad()
    def settle(self) -> dict[str, Blocks]:
        """Return the trained blocks, and make them the plain weights of the decoder."""
        return {name: self._settle(name, rounded) for name, rounded in self._rounded.items()}

    def _settle(self, name: str, rounded: _Rounded) -> Blocks:
        matrix = self._decoder.get_submodule(name.removesuffix(".weight"))
        trained = (f"parametrizations.weight.original{number}" for number in range(2))
        blocks = rounded.settled(*(matrix.get_parameter(one) for one in trained))
        parametrize.remove_parametrizations(matrix, "weight", leave_parametrized=True)
        del matrix.weight
        matrix.weight = nn.Parameter(floats(blocks).to(self._decoder.output.device), False)
        return blocks
