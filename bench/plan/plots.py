"""Plot of speeds relative to the cloud alone, by round-trip time."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from bench.lab.plots import Lines, Series, role_of, write_plot
from bench.plan.figures import ProfilePlan
from bench.plan.tables import COMPARED_METHODS, SKETCH


def plot_plan(path: Path, plans: Sequence[ProfilePlan]) -> None:
    """Plots one panel for each profile. The suffix of `path` selects the file format.

    Raises `EdgespecError` if the file cannot be written.
    """
    write_plot(path, [_panel(plan) for plan in plans])


def _panel(plan: ProfilePlan) -> Lines:
    series = [
        Series(
            name,
            [row.ratio_to_cloud[name] for row in plan.rows],
            plan.rtts_ms,
            "bound" if name == SKETCH else role_of(name),
        )
        for name in COMPARED_METHODS
        if all(name in row.ratio_to_cloud for row in plan.rows)
    ]
    return Lines(series, plan.name, "RTT [ms]", "speed, relative to cloud", levels=[1])
