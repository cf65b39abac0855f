"""The report of `edgespec calibrate`, as tables and as JSON."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec
from rich.console import Console
from rich.table import Table

from edgespec.manifest import Calibration


class ExitReport(msgspec.Struct, frozen=True):
    """The figures of an exit head after `layer` layers."""

    layer: int
    untrained: float
    """Agreement with the target's tokens before training."""
    calibration: Calibration
    remaining: float
    """Fraction of the verify time that remains after the exit."""
    foreseen: float
    """Fraction of rounds whose outcome its hint predicts and the device did not guess."""
    gain_ms: float
    """Gain per round as the only exit."""


class CalibrationReport(msgspec.Struct, frozen=True):
    """All figures of a run."""

    target: str
    layers: int
    exits: list[ExitReport]
    drafts: dict[str, Calibration]
    """Figures by profile."""
    verify_ms: float
    """Verify time of a round on this machine, without exit heads."""
    head_ms: float
    """The part of the output matrix, which is also the cost of every exit head."""
    draft_ms: float
    """Time to draft a round; 0 without a draft."""
    draft_length: int
    split: tuple[int, ...]
    """Recommended split; empty if no exit head gains more than it costs."""
    gain_ms: float
    """Gain of the recommended split per round."""
    tokens: int = 0
    """Answer tokens that the heads were trained on."""
    agreement: float | None = None
    """Agreement of a quantised target with its original; None for a float32 target."""
    command: str = ""
    """The command that applies the recommendation."""


def show(report: CalibrationReport) -> None:
    """Print the report on stdout."""
    console = Console(highlight=False, markup=False, emoji=False)
    console.print(_exits(report))
    if report.drafts:
        console.print(drafts_table(report.drafts))
    if report.agreement is not None:
        console.print(
            "the bundle's quantised target has the original's arg-max at "
            f"{report.agreement:.1%} of the positions",
            soft_wrap=True,
        )
    console.print(
        f"a round on this machine: verify {report.verify_ms:.1f} ms, of which the output matrix "
        f"{report.head_ms:.1f} ms (the cost of each exit head); {report.draft_length} draft tokens "
        f"{report.draft_ms:.1f} ms",
        soft_wrap=True,
    )
    console.print(_recommendation(report), soft_wrap=True)
    console.print(report.command, soft_wrap=True)
    if report.drafts:
        console.print("with the --draft and --profile that the bundle was exported with")


def _recommendation(report: CalibrationReport) -> str:
    if not report.split:
        return (
            "recommended: one segment without exit heads, because no hint gains more than its "
            "head costs; apply it with"
        )
    segments = len(report.split) + 1
    layers = " and ".join(map(str, report.split))
    return (
        f"recommended: {segments} segments, with exit heads after layer"
        f"{'s' * (len(report.split) > 1)} {layers} ({report.gain_ms:.2f} ms gained per round); "
        "apply it with"
    )


def _exits(report: CalibrationReport) -> Table:
    table = _table(
        "exit after", "untrained", "trained", "cal. error", "remaining", "foreseen", "gain (ms)"
    )
    for one in report.exits:
        table.add_row(
            f"{one.layer}{' *' if one.layer in report.split else ''}",
            f"{one.untrained:.3f}",
            f"{one.calibration.agreement:.3f}",
            f"{one.calibration.error:.3f}",
            f"{one.remaining:.0%}",
            f"{one.foreseen:.3f}",
            f"{one.gain_ms:+.2f}",
        )
    return table


def drafts_table(drafts: Mapping[str, Calibration]) -> Table:
    table = _table("draft", "agreement", "cal. error", "tokens")
    for name, figures in drafts.items():
        table.add_row(name, f"{figures.agreement:.3f}", f"{figures.error:.3f}", str(figures.tokens))
    return table


def _table(*columns: str) -> Table:
    table = Table(box=None, header_style="dim", pad_edge=False)
    for column in columns:
        table.add_column(column, justify="right" if column != columns[0] else "left")
    return table
