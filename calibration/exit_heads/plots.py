"""The plots of a calibration. They need matplotlib."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from edgespec.confidence import Reliability


def agreement_by_layer(
    path: Path,
    untrained: Mapping[int, float],
    trained: Mapping[int, float],
    split: Sequence[int],
    layers: int,
) -> None:
    """Plot agreement before and after training, and the recommended split."""
    figure, axes = _figure(6.4, 4.0)
    for values, label in ((trained, "trained"), (untrained, "untrained")):
        order = sorted(values)
        axes.plot(order, [values[layer] for layer in order], marker="o", label=label)
    for number, layer in enumerate(split):
        axes.axvline(layer, linestyle=":", color="grey", label="" if number else "recommended")
    axes.set_xticks(sorted(trained))
    axes.set(
        xlabel=f"layers before the exit, of {layers}",
        ylabel="fraction of tokens equal to the target's",
        title="Exit heads: agreement with the target",
        ylim=(0, 1),
    )
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path)


def reliability_diagram(path: Path, bins: Mapping[str, Sequence[Reliability]]) -> None:
    """Plot confidence against the fraction of right tokens; the diagonal is perfect calibration."""
    figure, axes = _figure(5.0, 5.0)
    axes.plot([0, 1], [0, 1], color="grey", linestyle=":")
    for label, points in bins.items():
        axes.plot(
            [point.confidence for point in points],
            [point.right for point in points],
            marker="o",
            markersize=3,
            label=label,
        )
    axes.set(
        xlabel="confidence",
        ylabel="fraction of right tokens",
        title="Reliability on held-out text",
        xlim=(0, 1),
        ylim=(0, 1),
    )
    axes.grid(alpha=0.3)
    axes.legend(fontsize="small")
    figure.savefig(path)


def _figure(width: float, height: float):  # type: ignore[no-untyped-def]
    """Make a figure without a screen, a window system or global state."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    return figure, figure.add_subplot()
