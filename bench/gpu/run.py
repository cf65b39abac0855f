"""`edgespec bench gpu`: steps of a target of given shape, compared with the card's lower bound.

Measured are one token, verifying five tokens of more and more rows, and a prompt in chunks. The
steps run through the engine that serves devices, so the times include splitting a step into calls,
padding, and fetching choices and logits. Back ends are `torch` (exact) and `torch-fast`
(`engines/torch_backend/shapes.py`).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

import torch
from rich.console import Console

from bench.gpu.bound import Card, CardSpeeds, Work, known_card, measured_speeds, median_s, work
from bench.gpu.figures import GpuFigures, Kind, MeasuredSpeeds, TimedStep
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

PAST_TOKENS = 200
"""Cached positions of a row."""
DRAFT_TOKENS = 5
"""Tokens of a row that are verified."""
BACKENDS = ("torch", "torch-fast")
ONE_TOKEN_AIM_RATIO = 1.1
"""Largest ratio to the bound that the one-token step should have."""
VERIFY_AIM_RATIO = 1.25
"""Largest ratio to the bound that verifying `AIMED_ROWS` or more rows should have."""
AIMED_ROWS = 8


class Plan(NamedTuple):
    rows: Sequence[int]
    """Row counts to verify."""
    chunks: Sequence[int]
    """Chunk sizes of a prompt, in tokens."""
    prompt_tokens: int


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
    backends: tuple[str, ...] = BACKENDS
    max_rows: int = 64
    """Most rows to verify; choose fewer if the memory of the card holds fewer."""
    plot: Path | None = None


def run(settings: GpuSettings, *, as_json: bool) -> None:
    """Measures, prints and plots. Raises `EngineError` if there is no such device or its memory
    does not suffice."""
    check_plot_file(settings.plot)
    figures = measure(settings)
    console = Console(width=max(Console().width, 100))
    for table in gpu_tables(figures):
        console.print(table)
    if settings.plot:
        from bench.gpu.plots import plot_gpu

        plot_gpu(settings.plot, figures)
    if as_json:
        print(figures.as_json())


def measure(settings: GpuSettings) -> GpuFigures:
    if settings.device == "cuda" and not torch.cuda.is_available():
        raise EngineError(
            "torch finds no CUDA device here, so there is nothing to measure; "
            "--device cpu --shapes tiny shows what the bench does"
        )
    device = torch.device(settings.device)
    with torch_errors(), torch.inference_mode():
        model = random_model(SHAPES[settings.shapes], settings.precision, device)
        speeds = measured_speeds(device, model.dtype)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
    sheet = known_card(name) if device.type == "cuda" else None
    steps: list[TimedStep] = []
    with progress("steps", len(settings.backends), unit="back ends") as advance:
        for backend in settings.backends:
            steps += _Bench(model, backend, settings, speeds, sheet).steps()
            advance(1, backend)
    return GpuFigures(
        device=name,
        torch=str(torch.__version__),
        shapes=settings.shapes,
        precision=settings.precision,
        weights_mb=round(model.nbytes / 1e6, 1),
        measured=MeasuredSpeeds(speeds.bytes_per_s / 1e9, speeds.operations_per_s / 1e12),
        sheet=sheet,
        steps=steps,
    )


class _Bench:
    """Steps of one back end."""

    def __init__(
        self,
        model: Model,
        backend: str,
        settings: GpuSettings,
        speeds: CardSpeeds,
        sheet: Card | None,
    ) -> None:
        self._model, self._backend, self._speeds = model, backend, speeds
        self._sheet_speeds = CardSpeeds.of_sheet(sheet) if sheet else None
        self._plan = PLANS[settings.shapes]
        self._rows = [count for count in self._plan.rows if count <= settings.max_rows]
        chosen = TorchSettings(threads=0, slots=max(self._rows) + 1, exact=backend == "torch")
        self._engine: Engine = engine(model, chosen, model.architecture.context)

    def steps(self) -> Iterator[TimedStep]:
        """One token, then verifying by rows, then a prompt by chunk size."""
        slots = [self._engine.open() for _ in range(max(self._rows))]
        for slot in slots:
            final_choices(self._engine, [Row(slot, 0, self._ids(PAST_TOKENS), 0)])
        least = work(self._model, 1, 1, PAST_TOKENS, 1)
        yield self._step("one", 1, self._decode_s(slots[:1], 1), least, ONE_TOKEN_AIM_RATIO)
        for rows in self._rows:
            taken_s = self._decode_s(slots[:rows], DRAFT_TOKENS)
            least = work(self._model, rows, DRAFT_TOKENS, PAST_TOKENS, DRAFT_TOKENS)
            aim = VERIFY_AIM_RATIO if rows >= AIMED_ROWS else None
            yield self._step("verify", rows, taken_s, least, aim)
        for slot in slots:
            self._engine.close(slot)
        for chunk in self._plan.chunks:
            yield self._step("prefill", chunk, *self._prefill(chunk), None)

    def _step(
        self, kind: Kind, size: int, taken_s: float, least: Work, aim: float | None
    ) -> TimedStep:
        return TimedStep(
            backend=self._backend,
            kind=kind,
            size=size,
            ms=1e3 * taken_s,
            bound_ms=1e3 * least.bound_s(self._speeds),
            sheet_ms=1e3 * least.bound_s(self._sheet_speeds) if self._sheet_speeds else None,
            aim=aim if self._model.device.type == "cuda" else None,
        )

    def _ids(self, count: int) -> list[int]:
        return [number % self._engine.vocabulary for number in range(count)]

    def _decode_s(self, slots: Sequence[int], tokens: int) -> float:
        """Seconds of a step that decodes or verifies `tokens` tokens of each slot."""
        batch = [Row(slot, PAST_TOKENS, self._ids(tokens), tokens) for slot in slots]
        return median_s(lambda: final_choices(self._engine, batch), self._model.device)

    def _prefill(self, chunk: int) -> tuple[float, Work]:
        """Seconds of a prompt in chunks of `chunk` tokens, and the sum of the chunks' work."""
        tokens, slot = self._plan.prompt_tokens, self._engine.open()
        ids, starts = self._ids(tokens), range(0, tokens, chunk)
        rows = [Row(slot, at, ids[at : at + chunk], int(at == starts[-1])) for at in starts]

        def read_prompt() -> None:
            for row in rows:
                final_choices(self._engine, [row])

        taken_s = median_s(read_prompt, self._model.device)
        self._engine.close(slot)
        parts = [work(self._model, 1, len(row.tokens), row.start, row.choice_count) for row in rows]
        return taken_s, Work(sum(p.bytes for p in parts), sum(p.operations for p in parts))
