"""The least that a step can take on a card: what it reads at the memory's speed, or what it
multiplies at the arithmetic's, whichever is longer.

Both speeds are measured in the same run (a copy, a square matrix product of the model's type) and
shown beside the data sheet's, which no program reaches; ratios are to the measured ones.
"""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable
from importlib import resources
from typing import Any, NamedTuple

import torch

from engines.torch_backend.model import Model

REPEATS = 9


class Card(NamedTuple):
    """A data sheet's figures."""

    bandwidth_gb_s: float
    half_tflops: float
    """Dense, 16-bit floats."""
    source: str


class CardSpeeds(NamedTuple):
    bandwidth: float
    """Bytes a second, read and written."""
    arithmetic: float
    """Operations a second, two for a multiplication and the addition after it."""


class Work(NamedTuple):
    """What a step cannot do without."""

    bytes: float
    operations: float

    def bound(self, speeds: CardSpeeds) -> float:
        """Seconds."""
        return max(self.bytes / speeds.bandwidth, self.operations / speeds.arithmetic)


def card(name: str) -> Card | None:
    """The card that calls itself so, if its data sheet is in `gpu_cards.json`."""
    text = resources.files("bench.gpu").joinpath("cards.json").read_text(encoding="utf-8")
    for entry in json.loads(text):
        if all(sign.lower() in name.lower() for sign in entry["signs"]):
            return Card(entry["bandwidth_gb_s"], entry["half_tflops"], entry["source"])
    return None


def measured(device: torch.device, dtype: torch.dtype) -> CardSpeeds:
    cuda = device.type == "cuda"
    source = torch.zeros(1 << (30 if cuda else 26), dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    copied = seconds(lambda: target.copy_(source), device)
    # Some CPUs multiply 16-bit floats slower than 32-bit ones, and not in every shape alike.
    kinds = {dtype} if cuda else {dtype, torch.float32}
    return CardSpeeds(2 * source.nbytes / copied, max(_arithmetic(device, kind) for kind in kinds))


def _arithmetic(device: torch.device, dtype: torch.dtype) -> float:
    """Operations a second of a square matrix product."""
    side = 8192 if device.type == "cuda" else 256
    matrix = torch.randn(side, side, device=device).to(dtype)
    return 2 * side**3 / seconds(lambda: matrix @ matrix, device)


def seconds(call: Callable[[], Any], device: torch.device) -> float:
    """Median; the first ones set up what is set up once, CUDA graphs included."""
    taken = []
    for turn in range(REPEATS + 3):
        _finish(device)
        before = time.perf_counter()
        call()
        _finish(device)
        if turn >= 3:
            taken.append(time.perf_counter() - before)
    return statistics.median(taken)


def _finish(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def work(model: Model, rows: int, tokens: int, past: int, wanted: int) -> Work:
    """Of `rows` slots that hold `past` positions and get `tokens` new ones, with `wanted` choices
    each: weights once, keys and values once, and every product."""
    shapes = model.architecture
    reads_head = model.head.nbytes if wanted else 0
    layers = model.nbytes - model.head.nbytes
    position = 2 * shapes.layers * shapes.kv_heads * shapes.head_dim * model.dtype.itemsize
    cached = rows * (past + tokens) * position
    attended = rows * sum(past + number + 1 for number in range(tokens))
    operations = (
        2 * rows * (tokens * layer_weights(model) + wanted * shapes.hidden * shapes.vocabulary)
    )
    attention = 4 * shapes.layers * shapes.heads * shapes.head_dim * attended
    return Work(layers + reads_head + cached, operations + attention)


def layer_weights(model: Model) -> int:
    """Numbers in the layers' matrices."""
    shapes = model.architecture
    attention = (2 * shapes.heads + 2 * shapes.kv_heads) * shapes.head_dim * shapes.hidden
    return shapes.layers * (attention + 3 * shapes.hidden * shapes.intermediate)
