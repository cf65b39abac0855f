"""What `edgespec calibrate` has found, as a table for people and as JSON."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec
from rich.console import Console
from rich.table import Table

from edgespec.manifest import Calibration


class Exit(msgspec.Struct, frozen=True):
    """An exit head after `layer` layers."""

    layer: int
    untrained: float
    """Agreement with the target's tokens before training."""
    calibration: Calibration
    remaining: float
    """Share of the verify time that is still to come."""
    foreseen: float
    """Share of rounds whose outcome its hint names and the device had not guessed."""
    value: float
    """Milliseconds a round that it gains as the only exit."""


class Report(msgspec.Struct, frozen=True):
    target: str
    layers: int
    exits: list[Exit]
    drafts: dict[str, Calibration]
    """By profile."""
    verify_ms: float
    """A round's verify on this machine, without exit heads."""
    head_ms: float
    """Its part for the output matrix, which every exit head costs again."""
    draft_ms: float
    """What the device needs to draft a round; 0 without a draft."""
    draft_length: int
    split: tuple[int, ...]
    """Recommended; empty where no exit head is worth its time."""
    value: float
    """Milliseconds a round that it gains."""
    tokens: int = 0
    """Answer tokens that the heads were trained on."""
    agreement: float | None = None
    """Of the bundle's quantised target with its original; None for one that is not quantised."""
    command: str = ""
    """Applies the recommendation."""


def show(report: Report) -> None:
    """Prints the report on stdout."""
    console = Console(highlight=False, markup=False, emoji=False)
    console.print(_exits(report))
    if report.drafts:
        console.print(_drafts(report.drafts))
    if report.agreement is not None:
        console.print(
            f"the bundle's quantised target names the original's token on "
            f"{report.agreement:.1%} of the positions",
            soft_wrap=True,
        )
    console.print(
        f"a round here: verify {report.verify_ms:.1f} ms, {report.head_ms:.1f} of it the output "
        f"matrix, which each exit head costs again; {report.draft_length} draft tokens "
        f"{report.draft_ms:.1f} ms",
        soft_wrap=True,
    )
    console.print(_recommendation(report), soft_wrap=True)
    console.print(report.command, soft_wrap=True)
    if report.drafts:
        console.print("with the --draft and --profile that the bundle was exported with")


def _recommendation(report: Report) -> str:
    if not report.split:
        return (
            "recommended: one segment without exit heads, since no hint is worth here what its "
            "head costs; apply it with"
        )
    segments = len(report.split) + 1
    layers = " and ".join(map(str, report.split))
    return (
        f"recommended: {segments} segments, with exit heads after layer"
        f"{'s' * (len(report.split) > 1)} {layers} ({report.value:.2f} ms gained a round); "
        "apply it with"
    )


def _exits(report: Report) -> Table:
    table = _table(
        "exit after", "untrained", "trained", "cal. error", "to come", "foreseen", "gain (ms)"
    )
    for leaving in report.exits:
        table.add_row(
            f"{leaving.layer}{' *' if leaving.layer in report.split else ''}",
            f"{leaving.untrained:.3f}",
            f"{leaving.calibration.agreement:.3f}",
            f"{leaving.calibration.error:.3f}",
            f"{leaving.remaining:.0%}",
            f"{leaving.foreseen:.3f}",
            f"{leaving.value:+.2f}",
        )
    return table


def _drafts(drafts: Mapping[str, Calibration]) -> Table:
    table = _table("draft", "agreement", "cal. error", "tokens")
    for name, figures in drafts.items():
        table.add_row(name, f"{figures.agreement:.3f}", f"{figures.error:.3f}", str(figures.tokens))
    return table


def _table(*columns: str) -> Table:
    table = Table(box=None, header_style="dim", pad_edge=False)
    for column in columns:
        table.add_column(column, justify="right" if column != columns[0] else "left")
    return table
