"""Plot of the share of devices that are served, by fleet size."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from bench.fleet.search import SERVED_RATIO
from bench.lab.plots import Lines, Series, role_of, write_plot
from bench.plan.figures import MethodFleets, ProfileFleets


def plot_fleets(path: Path, profiles: Sequence[ProfileFleets]) -> None:
    """Plots one panel for each profile and target rate. The suffix of `path` selects the file
    format.

    Raises `EdgespecError` if the file cannot be written.
    """
    panels = [
        _panel(profile.name, float(rate), methods)
        for profile in profiles
        for rate, methods in profile.rates.items()
    ]
    write_plot(path, panels)


def _panel(profile: str, rate: float, methods: dict[str, MethodFleets]) -> Lines:
    series = []
    for name, method in methods.items():
        fleets = sorted(method.fleets, key=lambda fleet: fleet.devices)
        served = [100 * fleet.served for fleet in fleets]
        devices = [fleet.devices for fleet in fleets]
        series.append(Series(name, served, devices, role_of(name)))
    return Lines(
        series,
        profile,
        "devices",
        f"served at {rate:g} tokens/s [%]",
        y_range=(0, 103),
        doubling=True,
        levels=[100 * SERVED_RATIO],
    )
