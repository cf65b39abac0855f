"""Exit heads: predictions of the target's token after some of its layers.

After layer L a head computes `h + up @ silu(down @ rms_norm(h))`, a residual adapter of low rank.
The target's final norm and output matrix follow, so an exit costs two thin matrices on disk. `up`
starts at zero: training begins at the untrained head (the "logit lens"), and the adapter learns
what the remaining layers add to the state (a low-rank form of the tuned lens, Belrose et al.,
arXiv 2303.08112).

On disk, safetensors in float16: `exit.L.norm.weight` [hidden], `exit.L.down.weight` [rank, hidden],
`exit.L.up.weight` [hidden, rank], and under `edgespec` in the metadata a JSON object with `target`,
`hidden`, `layers` and, by layer, `calibration`.
"""

from __future__ import annotations

import math
import os
from collections.abc import Collection, Mapping
from pathlib import Path

import msgspec
import torch
from safetensors.torch import save
from torch import Tensor, nn
from torch.nn import functional

from calibration.decoder import Decoder, RmsNorm
from edgespec.errors import EdgespecError, UsageError
from edgespec.manifest import Calibration

HEADS = "exit-heads.safetensors"
RANK = 192
"""Rank of an adapter, 0.4 MB per layer of SmolLM2. Agreement, measured as in
`calibration.exit_heads.training`: 0.412 with 64, 0.434 with 128, 0.465 with 192."""
_INITIAL_DEVIATION = 3.0
"""Standard deviation of the inner states at the start. Measured after layer 20 of SmolLM2, with
24 000 tokens in 4 laps: agreement 0.367 with 1, 0.392 with 3."""
GRID_LAYERS = 10
"""Approximate number of layers to try, in addition to the bundle's borders."""


def candidates(layers: int, borders: Collection[int]) -> list[int]:
    """Return the layers to try, ascending: the borders, and an even grid over the last two thirds.

    Raises `UsageError` for a target of one layer.
    """
    if layers < 2:
        raise UsageError(
            "the target has one layer, so it cannot have an exit; "
            "choose a target of two layers or more"
        )
    grid = range(-(-layers // 3), layers, max(1, round(layers * 2 / 3 / GRID_LAYERS)))
    return sorted({*grid, *borders})


class ExitHead(nn.Module):
    """The adapter of one layer. Its parameters have the names of the file's tensors."""

    def __init__(self, hidden: int, rank: int, epsilon: float, random: torch.Generator) -> None:
        super().__init__()
        self.norm = RmsNorm(hidden, epsilon)
        self.down = nn.Linear(hidden, rank, bias=False)
        self.up = nn.Linear(rank, hidden, bias=False)
        with torch.no_grad():
            self.down.weight.normal_(0, _INITIAL_DEVIATION / math.sqrt(hidden), generator=random)
            self.up.weight.zero_()

    def forward(self, hidden: Tensor) -> Tensor:
        """Map states after the layer to predicted states after the last one, [n, hidden]."""
        change: Tensor = self.up(functional.silu(self.down(self.norm(hidden))))
        return hidden.float() + change


def untrained(decoder: Decoder, layers: Collection[int], rank: int, seed: int) -> nn.ModuleDict:
    """Return heads by layer number (as text) on the decoder's device, which change nothing yet."""
    shapes = decoder.architecture
    random = torch.Generator().manual_seed(seed)
    heads = {
        str(layer): ExitHead(shapes.hidden, rank, shapes.norm_epsilon, random) for layer in layers
    }
    return nn.ModuleDict(heads).to(decoder.output.device)


def write_heads(
    path: Path,
    heads: nn.ModuleDict,
    decoder: Decoder,
    target: str,
    calibration: Mapping[int, Calibration],
) -> None:
    """Write the heads of the layers in `calibration`, completely or not at all."""
    tensors = {
        f"exit.{layer}.{name}": tensor.detach().half().contiguous().cpu()
        for layer in calibration
        for name, tensor in heads[str(layer)].state_dict().items()
    }
    about = {
        "target": target,
        "hidden": decoder.architecture.hidden,
        "layers": decoder.architecture.layers,
        "calibration": {str(layer): figures for layer, figures in sorted(calibration.items())},
    }
    text = msgspec.json.encode(about).decode()
    replace(path, save(tensors, metadata={"edgespec": text}))


def replace(path: Path, content: bytes) -> None:
    """Replace a file in one step. Raises `EdgespecError` if the disk refuses."""
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        partial.write_bytes(content)
        partial.rename(path)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise EdgespecError(f"writing {path} failed: {error.strerror or error}") from error
