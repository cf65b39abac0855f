"""Plot of agreement, accepted tokens and calibration. Needs matplotlib (the extra `plots`)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from bench.acceptance.lockstep_rounds import LENGTHS
from bench.lab.plots import save


def plot_acceptance(path: Path, figures: dict[str, Any]) -> None:
    """Agreement by category, accepted tokens by draft length, and a reliability diagram.

    The ending of `path` chooses the format. Raises `EdgespecError` where it cannot be written.
    """
    figure = Figure(figsize=(13, 4.2), layout="constrained")
    FigureCanvasAgg(figure)
    agreement, rounds, reliability = figure.subplots(1, 3)
    _agreement(agreement, figures)
    _rounds(rounds, figures)
    _reliability(reliability, figures)
    save(figure, path)


def _ways(figures: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    ways = [figures, figures["sampled"]] if "sampled" in figures else [figures]
    temperatures = [way["sampling"]["temperature"] for way in ways]
    names = [f"T {temperature:g}" if temperature else "greedy" for temperature in temperatures]
    return list(zip(names, ways, strict=True))


def _agreement(axes: Axes, figures: dict[str, Any]) -> None:
    ways = _ways(figures)
    height = 0.8 / len(ways)
    for number, (name, way) in enumerate(ways):
        shares = {**way["agreement_by_category"], "overall": way["agreement"]}
        places = [place + number * height for place in range(len(shares))]
        axes.barh(places, list(shares.values()), height, label=name)
    axes.set_yticks([place + 0.4 - height / 2 for place in range(len(shares))], list(shares))
    axes.invert_yaxis()
    axes.set(xlim=(0, 1), xlabel="agreement", title=f"draft {figures['drafter']}")


def _rounds(axes: Axes, figures: dict[str, Any]) -> None:
    for name, way in _ways(figures):
        axes.plot(list(LENGTHS), way["accepted_per_round"], marker="o", label=name)
    axes.set(xlabel="draft length", ylabel="accepted tokens a round", ylim=(0, None))
    axes.grid(alpha=0.3)
    axes.legend()


def _reliability(axes: Axes, figures: dict[str, Any]) -> None:
    axes.plot([0, 1], [0, 1], color="grey", linestyle=":")
    heads = [("draft", figures)] + [
        (f"exit after layer {exit['layer']}", exit) for exit in figures["exits"]
    ]
    for name, head in heads:
        if head["reliability"]:
            confidences, shares, _ = zip(*head["reliability"], strict=True)
            label = f"{name} (error {head['calibration_error']:.3f})"
            axes.plot(confidences, shares, marker="o", markersize=3, label=label)
            axes.legend(fontsize="small")
    axes.set(xlim=(0, 1), ylim=(0, 1), xlabel="confidence", ylabel="share right")
