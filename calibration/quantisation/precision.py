"""Choosing the matrices of a draft that are stored as int8, by measurement.

Each unit of matrices is rounded to int4 on its own. Its damage is the change of the model's
distribution over next tokens (Kullback-Leibler divergence, nats per token). The units with the most
damage per weight get int8, up to the budget.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from calibration.corpus import Sample
from calibration.decoder import Decoder
from calibration.distillation.batches import batch
from calibration.quantisation.gptq import NumberedLayer, Unit, units
from calibration.quantisation.rounding import Bits, floats, plain
from edgespec.checkpoint import Blocks


@torch.no_grad()
def damages(
    decoder: Decoder,
    samples: Sequence[Sample],
    *,
    advance: Callable[[int], object] = lambda _: None,
) -> dict[Unit, float]:
    """Measure the damage of every unit on the answers of `samples`, in one batch.

    The distribution is over the target's likeliest tokens at all positions of the samples. Each run
    starts at the layer of the unit, since the layers before it are unchanged. `advance` is called
    after every unit.
    """
    text = batch(samples, decoder.output.device, answers=True)
    layers = [NumberedLayer(decoder, layer, n) for n, layer in enumerate(decoder.model.layers)]
    words = decoder.output[text.candidates]
    states = [decoder.model.embed_tokens(text.ids)]
    for layer in layers:
        states.append(layer(states[-1]))
    truth = _logprobs(decoder, states[-1][text.learn], words)
    found = {}
    for unit in units(decoder):
        kept = {name: decoder.get_parameter(name).clone() for name in unit.names}
        for name, weight in kept.items():
            decoder.get_parameter(name).copy_(floats(plain(weight.float(), 4)))
        x = states[unit.layer]
        for layer in layers[unit.layer :]:
            x = layer(x)
        moved = _logprobs(decoder, x[text.learn], words)
        divergence = functional.kl_div(moved, truth, reduction="batchmean", log_target=True)
        found[unit] = float(divergence)
        for name, weight in kept.items():
            decoder.get_parameter(name).copy_(weight)
        advance(1)
    return found


def choose_bits(decoder: Decoder, measured: Mapping[Unit, float], share: float) -> dict[str, Bits]:
    """Choose int8 for the most damaged units, up to a fraction `share` of weights, else int4."""
    sizes = {u: sum(decoder.get_parameter(name).numel() for name in u.names) for u in measured}
    left = share * sum(sizes.values())
    chosen: dict[str, Bits] = {}
    for unit in sorted(measured, key=lambda unit: measured[unit] / sizes[unit], reverse=True):
        wide = sizes[unit] <= left
        left -= sizes[unit] if wide else 0
        chosen.update(dict.fromkeys(unit.names, 8 if wide else 4))
    return chosen


def packed_bytes(blocks: Mapping[str, Blocks]) -> int:
    """Return the bytes of packed matrices, integers and float16 scales."""
    return sum(one.values.size * one.bits // 8 + one.scales.size * 2 for one in blocks.values())


def _logprobs(decoder: Decoder, x: Tensor, words: Tensor) -> Tensor:
    norm: nn.Module = decoder.model.norm
    return functional.linear(norm(x), words).log_softmax(-1)
