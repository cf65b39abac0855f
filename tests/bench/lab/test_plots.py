"""The plot writer."""

from __future__ import annotations

import importlib.util
import math

import pytest
from matplotlib.figure import Figure

from bench.lab.percentile import percentile
from bench.lab.plots import Bars, Lines, Series, check_plot_file, require_matplotlib, write_plot
from edgespec.errors import EdgespecError, UsageError

CLOUD = Series("cloud", [1.0, 1.0], [0, 100])
MAIN = Series("edgespec", [1.3, math.nan], [0, 100], role="main")
BOUND = Series("bound", [2.0, 2.0], [0, 100], role="bound")


@pytest.fixture
def saved(monkeypatch):
    kept: list[Figure] = []
    save = Figure.savefig
    monkeypatch.setattr(
        Figure, "savefig", lambda self, *a, **k: (kept.append(self), save(self, *a, **k))
    )
    return kept


def test_a_name_has_one_style_and_one_place_in_the_legend(tmp_path, saved):
    panels = [
        Lines([CLOUD, MAIN], title="near", levels=(1.0,), ticks=[0, 5, 100]),
        Lines([MAIN, BOUND], title="far", x_label="RTT", doubling=True, x_range=(1, 100)),
        Bars([Series("edgespec", [0.5, math.nan])], ["a", "b"], form=".2f", levels=(1.0,)),
    ]
    write_plot(tmp_path / "a.png", panels, title="all", across=2)
    near, far, bars = saved[0].axes
    assert [line.get_label() for line in near.get_lines()][:2] == ["cloud", "edgespec"]
    assert near.get_lines()[1].get_color() == far.get_lines()[0].get_color()
    assert near.get_lines()[1].get_linewidth() > near.get_lines()[0].get_linewidth()
    assert far.get_lines()[1].get_marker() == "None"
    labels = [label.get_text() for label in near.get_xticklabels()]
    assert labels == ["0", "", "100"], "labels do not run into each other"
    assert {text.get_text() for text in bars.texts} == {"0.50", ""}
    names = [text.get_text() for text in saved[0].legends[0].get_texts()]
    assert names == ["cloud", "edgespec", "bound"]


def test_horizontal_bars_and_legends_inside(tmp_path, saved):
    bars = Bars(
        [Series("greedy", [0.5, 0.6]), Series("T 1", [0.4, 0.5])], ["chat", "code"],
        value_range=(0, 1), horizontal=True,
    )  # fmt: skip
    write_plot(tmp_path / "a.svg", [bars, Lines([CLOUD], diagonal=True)], legend="inside")
    left, right = saved[0].axes
    assert left.get_xlim() == (0, 1) and left.get_legend() and not right.get_legend()
    assert [label.get_text() for label in left.get_yticklabels()] == ["chat", "code"]


def test_what_cannot_be_plotted_is_said(tmp_path):
    with pytest.raises(EdgespecError, match="nothing to plot"):
        write_plot(tmp_path / "a.png", [])
    with pytest.raises(EdgespecError, match="cannot be written"):
        write_plot(tmp_path / "none" / "a.png", [Lines([CLOUD])])


def test_matplotlib_and_the_folder_are_checked_before_anything_is_measured(tmp_path, monkeypatch):
    require_matplotlib(tmp_path / "a.png")
    check_plot_file(tmp_path / "a.png")
    check_plot_file(None)
    for path in (tmp_path, tmp_path / "none" / "a.png"):
        with pytest.raises(UsageError, match="--plot"):
            check_plot_file(path)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    require_matplotlib(None)
    with pytest.raises(ModuleNotFoundError, match="matplotlib"):
        require_matplotlib(tmp_path / "a.png")
    with pytest.raises(ModuleNotFoundError, match="matplotlib"):
        check_plot_file(tmp_path / "a.png")


def test_percentiles_by_hand():
    assert percentile([], 0.5) == 0.0
    assert percentile([3, 1, 2], 0.5) == 2
    assert percentile([4, 3, 1, 2], 0.5) == 2
    assert percentile(list(range(1, 101)), 0.99) == 99
