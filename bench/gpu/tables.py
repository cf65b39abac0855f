"""Steps against the bound, as tables."""

from __future__ import annotations

from typing import Any

from rich.table import Table

from bench.plan.tables import plain_table

KINDS = {"one": "one token", "verify": "verify of 5", "prefill": "prompt in chunks"}
SIZES = {"one": "row", "verify": "rows", "prefill": "tokens"}


def gpu_tables(figures: dict[str, Any]) -> list[Table]:
    """One a mode."""
    modes = dict.fromkeys(step["mode"] for step in figures["steps"])
    return [_table(figures, mode) for mode in modes]


def _table(figures: dict[str, Any], mode: str) -> Table:
    table = plain_table(
        f"{mode}: {figures['shapes']}, {figures['precision']}, on {figures['device']}",
        _caption(figures),
        60,
    )
    for header in ("step", "", "ms", "bound\nms", "data sheet's\nms", "ratio", "aim", ""):
        table.add_column(header, justify="left" if header == "step" else "right", no_wrap=True)
    for step in (one for one in figures["steps"] if one["mode"] == mode):
        aim, sheet = step["aim"], step["sheet_ms"]
        table.add_row(
            KINDS[step["kind"]],
            f"{step['size']} {SIZES[step['kind']]}",
            f"{step['ms']:.2f}",
            f"{step['bound_ms']:.3f}",
            f"{sheet:.3f}" if sheet is not None else "–",
            f"{step['ratio']:.2f}",
            f"{aim:g}" if aim is not None else "–",
            {True: "met", False: "missed", None: ""}[step["met"]],
        )
    return table


def _caption(figures: dict[str, Any]) -> str:
    measured, sheet = figures["measured"], figures["sheet"]
    said = f"measured here: {measured['gb_s']:.0f} GB/s, {measured['tflops']:.3g} TFLOP/s"
    if sheet:
        said += f"; data sheet: {sheet['bandwidth_gb_s']:g} GB/s, {sheet['half_tflops']:g} TFLOP/s"
    if figures["precision"] == "int8":
        said += "; torch multiplies no int8 blocks, so these are bfloat16 here"
    return f"{said}; {figures['weights_mb']:g} MB of weights; ratio: to the measured bound"
