"""`edgespec bench gpu`: steps of a target of given shape against what the card can do at best.

One token, verifying five in more and more rows, and a prompt in chunks, through the engine that
serves devices: cutting into calls, padding, and fetching choices and logits are all in the times.
In both modes of the torch back end, exact and fast (`engines/torch_backend/shapes.py`).
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import torch
from rich.console import Console

from bench.gpu.bound import Card, CardSpeeds, Work, card, measured, seconds, work
from bench.gpu.models import SHAPES, random_model
from bench.gpu.tables import gpu_tables
from bench.lab.plots import check_plot_file
from edgespec.errors import EngineError
from edgespec.progress import progress
from engines.base import Engine, Row, final_choices
from engines.torch_backend.device import torch_errors
from engines.torch_backend.model import Model
from engines.torch_backend.runner import TorchSettings
from engines.torch_backend.target import engine

PAST = 200
"""Cached positions of a row."""
DRAFT = 5
"""Tokens verified."""
MODES = ("torch", "torch-fast")
AIM_ONE, AIM_ROWS, AIMED_ROWS = 1.1, 1.25, 8
"""Ratios to the bound: of one token, and of verifying from so many rows up."""


class Plan(NamedTuple):
    rows: Sequence[int]
    chunks: Sequence[int]
    prompt: int


PLANS = MappingProxyType(
    {
        "llama-2-7b": Plan((1, 2, 4, 8, 16, 32, 64), (64, 128, 256, 512), 2048),
        "tiny": Plan((1, 2, 4), (64, 128), 256),
    }
)


@dataclass(frozen=True)
class GpuSettings:
    shapes: str = "llama-2-7b"
    precision: str = "fp16"
    device: str = "cuda"
    modes: tuple[str, ...] = MODES
    most_rows: int = 64
    """Fewer where the card's memory holds no more."""
    plot: Path | None = None


class TimedStep(NamedTuple):
    mode: str
    kind: str
    """`one`, `verify` or `prefill`."""
    size: int
    """Rows, or tokens of a chunk."""
    ms: float
    bound_ms: float
    """By the measured speeds."""
    sheet_ms: float | None
    """By the data sheet's."""
    aim: float | None

    @property
    def ratio(self) -> float:
        return self.ms / self.bound_ms

    @property
    def met(self) -> bool | None:
        return None if self.aim is None else self.ratio <= self.aim

    def as_dict(self) -> dict[str, Any]:
        return {**self._asdict(), "ratio": round(self.ratio, 3), "met": self.met}


def run(settings: GpuSettings, *, as_json: bool) -> None:
    """Measures, prints and plots. Raises `EngineError` where there is no such device, or where its
    memory does not suffice."""
    check_plot_file(settings.plot)
    figures = measure(settings)
    console = Console(width=max(Console().width, 100))
    for table in gpu_tables(figures):
        console.print(table)
    if settings.plot:
        from bench.gpu.plots import plot_gpu

        plot_gpu(settings.plot, figures)
    if as_json:
        print(json.dumps(figures))


def measure(settings: GpuSettings) -> dict[str, Any]:
    if settings.device == "cuda" and not torch.cuda.is_available():
        raise EngineError(
            "torch finds no CUDA device here, so there is nothing to measure; "
            "--device cpu --shapes tiny shows what the bench does"
        )
    device = torch.device(settings.device)
    with torch_errors(), torch.inference_mode():
        model = random_model(SHAPES[settings.shapes], settings.precision, device)
        speeds = measured(device, model.dtype)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
    sheet = card(name) if device.type == "cuda" else None
    steps: list[TimedStep] = []
    with progress("steps", len(settings.modes), unit="modes") as advance:
        for mode in settings.modes:
            steps += _steps(model, mode, settings, speeds, sheet)
            advance(1, mode)
    return {
        "device": name,
        "torch": torch.__version__,
        "shapes": settings.shapes,
        "precision": settings.precision,
        "weights_mb": round(model.nbytes / 1e6, 1),
        "measured": {"gb_s": speeds.bandwidth / 1e9, "tflops": speeds.arithmetic / 1e12},
        "sheet": sheet._asdict() if sheet else None,
        "steps": [step.as_dict() for step in steps],
    }


def _steps(
    model: Model, mode: str, settings: GpuSettings, speeds: CardSpeeds, sheet: Card | None
) -> list[TimedStep]:
    plan = PLANS[settings.shapes]
    rows = [count for count in plan.rows if count <= settings.most_rows]
    chosen = TorchSettings(threads=0, slots=max(rows) + 1, exact=mode == "torch")
    opened = engine(model, chosen, model.architecture.context)
    aims = model.device.type == "cuda"

    def step(kind: str, size: int, taken: float, least: Work, aim: float | None) -> TimedStep:
        by_sheet = None
        if sheet is not None:
            best = CardSpeeds(sheet.bandwidth_gb_s * 1e9, sheet.half_tflops * 1e12)
            by_sheet = 1e3 * least.bound(best)
        bound = 1e3 * least.bound(speeds)
        return TimedStep(mode, kind, size, 1e3 * taken, bound, by_sheet, aim if aims else None)

    slots = [opened.open() for _ in range(max(rows))]
    for slot in slots:
        final_choices(opened, [Row(slot, 0, _ids(opened, PAST), 0)])
    found = [
        step("one", 1, _time(opened, model, slots[:1], 1), work(model, 1, 1, PAST, 1), AIM_ONE)
    ]
    for count in rows:
        taken = _time(opened, model, slots[:count], DRAFT)
        aim = AIM_ROWS if count >= AIMED_ROWS else None
        found.append(step("verify", count, taken, work(model, count, DRAFT, PAST, DRAFT), aim))
    for slot in slots:
        opened.close(slot)
    for size in plan.chunks:
        found.append(step("prefill", size, *_prefill(opened, model, plan.prompt, size), None))
    return found


def _ids(opened: Engine, count: int) -> list[int]:
    return [number % opened.vocabulary for number in range(count)]


def _time(opened: Engine, model: Model, slots: Sequence[int], tokens: int) -> float:
    batch = [Row(slot, PAST, _ids(opened, tokens), tokens) for slot in slots]
    return seconds(lambda: final_choices(opened, batch), model.device)


def _prefill(opened: Engine, model: Model, prompt: int, size: int) -> tuple[float, Work]:
    """A whole prompt: its time, and the sum of what its chunks cannot do without."""
    ids, slot = _ids(opened, prompt), opened.open()
    starts = range(0, prompt, size)
    last = starts[-1]
    rows = [Row(slot, at, ids[at : at + size], int(at == last)) for at in starts]

    def whole() -> None:
        for row in rows:
            final_choices(opened, [row])

    taken = seconds(whole, model.device)
    opened.close(slot)
    parts = [work(model, 1, len(row.tokens), row.start, row.choice_count) for row in rows]
    return taken, Work(sum(p.bytes for p in parts), sum(p.operations for p in parts))
