"""Choosing the target's layers that a draft starts from.

Layers are removed one by one. Each time, the layer whose removal changes the target's next-token
distribution least (KL divergence on answers) is removed, until the draft's number of layers
remains. Layers before a removed one are not run again, so a choice among thirty costs about half of
a hundred forward passes per layer.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from calibration.decoder import Decoder, autocast
from calibration.distillation.batches import TrainingBatch
from calibration.distillation.losses import divergence
from edgespec.errors import UsageError
from edgespec.progress import progress


def choose_layers(decoder: Decoder, batch: TrainingBatch, count: int) -> list[int]:
    """Return the `count` layers to keep, ascending from 0. Raises `UsageError` for too many."""
    left_out = set(leave_out(decoder, batch, count))
    return [layer for layer in range(decoder.architecture.layers) if layer not in left_out]


@torch.no_grad()
def leave_out(decoder: Decoder, batch: TrainingBatch, count: int) -> list[int]:
    """Return the layers to remove until `count` remain, the least important first.

    The list for a larger `count` is the beginning of this one. Raises `UsageError` for too many.
    """
    have = decoder.architecture.layers
    if not 1 <= count <= have:
        raise UsageError(
            f"a draft of {count} layers cannot be made of a target that has {have}; "
            f"choose between 1 and {have}"
        )
    kept, gone = list(range(have)), list[int]()
    rounds = sum(range(count + 1, have + 1))
    with progress("choosing layers", rounds, unit="tries") as advance, autocast(batch.ids.device):
        while len(kept) > count:
            costs = []
            for place, x in enumerate(_states(decoder, batch, kept)):
                costs.append(_cost(decoder, batch, x, kept[place + 1 :]))
                advance(1, f"({len(kept)} left)")
            gone.append(kept.pop(min(range(len(kept)), key=costs.__getitem__)))
    return gone


def _states(decoder: Decoder, batch: TrainingBatch, kept: Sequence[int]) -> list[Tensor]:
    """Return the state before each of the kept layers."""
    states = [decoder.model.embed_tokens(batch.ids)]
    for layer in kept[:-1]:
        states.append(decoder.through(states[-1], [layer]))
    return states


def _cost(decoder: Decoder, batch: TrainingBatch, x: Tensor, rest: Sequence[int]) -> float:
    features = decoder.model.norm(decoder.through(x, rest))[batch.learn]
    return float(divergence(features @ decoder.output[batch.candidates].T, batch).mean())
