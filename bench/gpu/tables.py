"""Tables of measured steps and their bounds."""

from __future__ import annotations

from rich.table import Table

from bench.gpu.figures import GpuFigures
from bench.lab.tables import MIN_WIDTH_COLUMNS, Column, table

STEP_NAMES = {"one": "one token", "verify": "verify of 5", "prefill": "prompt in chunks"}
SIZE_UNITS = {"one": "row", "verify": "rows", "prefill": "tokens"}
COLUMNS = (
    Column("step", lambda step: STEP_NAMES[step.kind], left=True),
    Column("", lambda step: f"{step.size} {SIZE_UNITS[step.kind]}"),
    Column("ms", "ms", ".2f"),
    Column("bound\nms", "bound_ms", ".3f"),
    Column("data sheet's\nms", "sheet_ms", ".3f"),
    Column("ratio", "ratio", ".2f"),
    Column("aim", "aim", "g"),
    Column("", lambda step: {True: "met", False: "missed", None: ""}[step.met]),
)


def gpu_tables(figures: GpuFigures) -> list[Table]:
    """One table for each back end."""
    on = f"{figures.shapes}, {figures.precision}, on {figures.device}"
    return [
        table(
            f"{backend}: {on}",
            COLUMNS,
            figures.steps_of(backend),
            caption=_caption(figures),
            min_width=MIN_WIDTH_COLUMNS,
        )
        for backend in figures.backends
    ]


def _caption(figures: GpuFigures) -> str:
    measured, sheet = figures.measured, figures.sheet
    parts = [f"measured here: {measured.gb_s:.0f} GB/s, {measured.tflops:.3g} TFLOP/s"]
    if sheet:
        parts.append(f"data sheet: {sheet.bandwidth_gb_s:g} GB/s, {sheet.half_tflops:g} TFLOP/s")
    if figures.precision == "int8":
        parts.append("torch multiplies no int8 blocks, so the weights are bf16 here")
    parts += [f"{figures.weights_mb:g} MB of weights", "ratio: to the measured bound"]
    return "; ".join(parts)
