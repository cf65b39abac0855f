"""Plot of agreement, accepted tokens and calibration."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from bench.acceptance.figures import AcceptanceFigures, ReliabilityBin
from bench.acceptance.lockstep_rounds import LENGTHS
from bench.lab.plots import Bars, Lines, Panel, Series, write_plot


def plot_acceptance(path: Path, figures: AcceptanceFigures) -> None:
    """Plots agreement by category, accepted tokens by draft length, and a reliability diagram.

    The suffix of `path` selects the file format. Raises `EdgespecError` if the file cannot be
    written.
    """
    panels: list[Panel] = [_agreement(figures), _rounds(figures), _reliability(figures)]
    write_plot(path, panels, legend="inside", panel_inches=(4.4, 4.0))


def _agreement(figures: AcceptanceFigures) -> Bars:
    return Bars(
        [
            Series(
                answers.sampling.name,
                [*answers.agreement_by_category.values(), answers.agreement],
            )
            for answers in figures.by_sampling
        ],
        groups=[*figures.agreement_by_category, "overall"],
        title=f"draft {figures.drafter}",
        x_label="agreement",
        value_range=(0, 1),
        horizontal=True,
    )


def _rounds(figures: AcceptanceFigures) -> Lines:
    return Lines(
        [
            Series(answers.sampling.name, answers.accepted_per_round, list(LENGTHS))
            for answers in figures.by_sampling
        ],
        x_label="draft length",
        y_label="accepted tokens a round",
    )


def _reliability(figures: AcceptanceFigures) -> Lines:
    heads = [("draft", figures.calibration_error or 0.0, figures.reliability)] + [
        (f"exit after layer {head.layer}", head.calibration_error, head.reliability)
        for head in figures.exits
    ]
    return Lines(
        [_head(f"{name} (error {error:.3f})", bins) for name, error, bins in heads if bins],
        x_label="confidence",
        y_label="share right",
        x_range=(0, 1),
        y_range=(0, 1),
        diagonal=True,
    )


def _head(name: str, bins: Sequence[ReliabilityBin]) -> Series:
    return Series(name, [right for _, right, _ in bins], [confidence for confidence, *_ in bins])
