"""Measured steps of `bench gpu`."""

from __future__ import annotations

from typing import Literal

import msgspec

from bench.gpu.bound import Card

Kind = Literal["one", "verify", "prefill"]


class MeasuredSpeeds(msgspec.Struct, frozen=True):
    gb_s: float
    tflops: float


class TimedStep(msgspec.Struct, frozen=True):
    """One measured step and its bounds."""

    backend: str
    kind: Kind
    size: int
    """Rows, or tokens of a chunk."""
    ms: float
    bound_ms: float
    """Bound by the measured speeds."""
    sheet_ms: float | None
    """Bound by the data sheet's speeds."""
    aim: float | None
    """Largest ratio that the step should have."""

    @property
    def ratio(self) -> float:
        """Time, relative to `bound_ms`."""
        return self.ms / self.bound_ms

    @property
    def met(self) -> bool | None:
        return None if self.aim is None else self.ratio <= self.aim


class GpuFigures(msgspec.Struct, frozen=True):
    """Result of `bench gpu`."""

    device: str
    torch: str
    """Version of torch."""
    shapes: str
    precision: str
    weights_mb: float
    measured: MeasuredSpeeds
    sheet: Card | None
    steps: list[TimedStep]

    @property
    def backends(self) -> list[str]:
        return list(dict.fromkeys(step.backend for step in self.steps))

    def steps_of(self, backend: str, kind: Kind | None = None) -> list[TimedStep]:
        return [s for s in self.steps if s.backend == backend and kind in (None, s.kind)]

    def as_json(self) -> str:
        """One line; each step with its ratio, and whether it met its aim."""
        steps = [
            msgspec.structs.asdict(step) | {"ratio": round(step.ratio, 3), "met": step.met}
            for step in self.steps
        ]
        return msgspec.json.encode(msgspec.structs.asdict(self) | {"steps": steps}).decode()
