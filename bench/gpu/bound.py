"""Lower bound of a step's time on a card: bytes read at the memory's speed, or operations at the
arithmetic's speed, whichever takes longer.

Both speeds are measured in the same run (a copy, and a square matrix product of the model's type).
Ratios refer to the measured speeds; the data sheet's, which no program reaches, are shown too.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from importlib import resources

import msgspec
import torch

from engines.torch_backend.model import Model

WARM_UP_COUNT = 3
"""Calls before the measured ones; they allocate memory and capture CUDA graphs."""
REPEAT_COUNT = 9
COPY_BYTES = {"cuda": 1 << 30, "cpu": 1 << 26}
MATRIX_ROWS = {"cuda": 8192, "cpu": 256}


class Card(msgspec.Struct, frozen=True):
    """Figures of a data sheet."""

    bandwidth_gb_s: float
    half_tflops: float
    """Dense, with 16-bit floats."""
    source: str


class _KnownCard(Card, frozen=True, kw_only=True):
    signs: tuple[str, ...]
    """Words that all occur in the card's name."""


class CardSpeeds(msgspec.Struct, frozen=True):
    bytes_per_s: float
    """Bytes read and written."""
    operations_per_s: float
    """A multiplication and the addition after it are two operations."""

    @classmethod
    def of_sheet(cls, card: Card) -> CardSpeeds:
        return cls(card.bandwidth_gb_s * 1e9, card.half_tflops * 1e12)


class Work(msgspec.Struct, frozen=True):
    """Least work of a step."""

    bytes: float
    operations: float

    def bound_s(self, speeds: CardSpeeds) -> float:
        return max(self.bytes / speeds.bytes_per_s, self.operations / speeds.operations_per_s)


def known_card(name: str) -> Card | None:
    """Data sheet in `cards.json` of the card with that device name, if there is one."""
    text = resources.files("bench.gpu").joinpath("cards.json").read_text(encoding="utf-8")
    for card in msgspec.json.decode(text, type=list[_KnownCard]):
        if all(sign.lower() in name.lower() for sign in card.signs):
            return Card(card.bandwidth_gb_s, card.half_tflops, card.source)
    return None


def measured_speeds(device: torch.device, dtype: torch.dtype) -> CardSpeeds:
    source = torch.zeros(COPY_BYTES[device.type], dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    copy_s = median_s(lambda: target.copy_(source), device)
    # Some CPUs multiply 16-bit floats slower than 32-bit ones, depending on the shape.
    dtypes = {dtype} if device.type == "cuda" else {dtype, torch.float32}
    return CardSpeeds(2 * source.nbytes / copy_s, max(_operations_per_s(device, d) for d in dtypes))


def _operations_per_s(device: torch.device, dtype: torch.dtype) -> float:
    """Operations per second of a square matrix product."""
    rows = MATRIX_ROWS[device.type]
    matrix = torch.randn(rows, rows, device=device).to(dtype)
    return 2 * rows**3 / median_s(lambda: matrix @ matrix, device)


def median_s(call: Callable[[], object], device: torch.device) -> float:
    """Median time of a call, until the device has finished, without the warm-up calls."""
    taken = []
    for turn in range(WARM_UP_COUNT + REPEAT_COUNT):
        _finish(device)
        before = time.perf_counter()
        call()
        _finish(device)
        if turn >= WARM_UP_COUNT:
            taken.append(time.perf_counter() - before)
    return statistics.median(taken)


def _finish(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def work(model: Model, rows: int, tokens: int, past: int, choices: int) -> Work:
    """Least work of a step over `rows` slots that hold `past` positions each and get `tokens` new
    ones, with `choices` choices each: weights, keys and values are read once."""
    shapes = model.architecture
    head_bytes = model.head.nbytes if choices else 0
    layer_bytes = model.nbytes - model.head.nbytes
    position_bytes = 2 * shapes.layers * shapes.kv_heads * shapes.head_dim * model.dtype.itemsize
    cache_bytes = rows * (past + tokens) * position_bytes
    attended = rows * sum(past + number + 1 for number in range(tokens))
    operations = (
        2 * rows * (tokens * layer_weights(model) + choices * shapes.hidden * shapes.vocabulary)
    )
    attention = 4 * shapes.layers * shapes.heads * shapes.head_dim * attended
    return Work(layer_bytes + head_bytes + cache_bytes, operations + attention)


def layer_weights(model: Model) -> int:
    """Number of weights in the layers' matrices."""
    shapes = model.architecture
    attention = (2 * shapes.heads + 2 * shapes.kv_heads) * shapes.head_dim * shapes.hidden
    return shapes.layers * (attention + 3 * shapes.hidden * shapes.intermediate)
