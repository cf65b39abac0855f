"""The plots and the table of methods over links."""

import struct

import numpy as np
import pytest
from matplotlib.figure import Figure
from msgspec.structs import replace
from rich.console import Console

from bench.link.emulator import Accuracy
from bench.link.figures import LinkCell, LinkFigures, StepTimes, speeds_of
from bench.link.plots import plot_ablation, plot_link
from bench.link.shape import LinkShape
from bench.link.tables import link_table
from edgespec.errors import EdgespecError
from engines.machine.doctor import Machine
from engines.machine.system_files import Processor

METHODS = ["cloud", "lockstep", "edgespec", "edgespec without branches", "edgespec without hints"]
SPEEDS = {
    (0, "cloud"): 20.0, (0, "lockstep"): 30.0, (0, "edgespec"): 40.0,
    (0, "edgespec without branches"): 30.0, (0, "edgespec without hints"): 36.0,
    (50, "cloud"): 20.0, (50, "edgespec"): 32.0, (50, "edgespec without branches"): 24.0,
}  # fmt: skip


def cell(rtt, method, speed):
    return LinkCell(
        rtt_ms=rtt, method=method, tokens_per_s=speed, ratio_to_cloud=speed / 20,
        first_token_ms=120.0 + rtt, p50_ms=15.5, p99_ms=61.5, steps_per_token=0.43,
        verified_per_token=2.0, accepted_per_token=0.6, thrown_away_per_token=1.27,
        bytes_up_per_token=21.0, bytes_down_per_token=14.0, device_busy=0.5, loop_share=0.1,
        draft_ms=5.0,
        hits={} if method == "cloud" else {"full": 0.31, "branch": 0.22, "hint": 0.0},
    )  # fmt: skip


@pytest.fixture
def figures():
    cells = [cell(rtt, method, speed) for (rtt, method), speed in SPEEDS.items()]
    return LinkFigures(
        pair="a pair",
        machine=Machine(processor=Processor(model="a processor"), cores=2, system="Linux"),
        rtts_ms=[0, 50],
        methods=METHODS,
        cells=cells,
        tokens_per_s=speeds_of(cells),
        worst_ratio_to_cloud=1.6,
        worst_ratio_useless=None,
        link_accuracy={"0": Accuracy(0.1, 0.2)},
        times=StepTimes(
            target_ms=20, token_ms=2, cloud_draft_ms=5, hint_ms=9, draft_ms=5, batch=[1.0]
        ),
        prompts=1,
        draft_length=4,
        temperature=0.0,
        link=LinkShape(),
    )


@pytest.fixture
def saved(monkeypatch):
    """The figure that was saved last."""
    kept = []
    save = Figure.savefig
    monkeypatch.setattr(
        Figure, "savefig", lambda self, *a, **k: (kept.append(self), save(self, *a, **k))
    )
    return kept


def check_png(path, least):
    data = path.read_bytes()
    assert data[:8] == b"\x89PNG\r\n\x1a\n"
    width, height = struct.unpack(">II", data[16:24])
    assert width >= least and height > 300


def test_every_method_has_a_line_and_a_missing_cell_is_a_gap(tmp_path, figures, saved):
    plot_link(tmp_path / "link.png", figures)
    check_png(tmp_path / "link.png", 1200)
    speed, ratio, p99 = saved[0].axes
    for axes in (speed, ratio, p99):
        lines = {line.get_label(): line.get_ydata() for line in axes.get_lines()}
        assert set(METHODS) <= set(lines)
        assert np.isnan(lines["lockstep"]).tolist() == [False, True]
    lines = {line.get_label(): list(line.get_ydata()) for line in ratio.get_lines()}
    assert lines["edgespec"] == [2.0, 1.6]
    assert [1, 1] in lines.values()
    assert {text.get_text() for text in saved[0].legends[0].get_texts()} == set(METHODS)


def test_labels_of_near_rtts_do_not_run_into_each_other(tmp_path, figures, saved):
    plot_link(tmp_path / "link.png", replace(figures, rtts_ms=[0, 5, 50, 200]))
    labels = [label.get_text() for label in saved[0].axes[0].get_xticklabels()]
    assert labels == ["0", "", "50", "200"]


def test_the_ablation_is_relative_to_edgespec(tmp_path, figures, saved):
    plot_ablation(tmp_path / "ablation.png", figures)
    check_png(tmp_path / "ablation.png", 800)
    axes = saved[0].axes[0]
    heights = {c.get_label(): [bar.get_height() for bar in c] for c in axes.containers}
    assert heights["without branches"] == [0.75, 0.75]
    assert heights["without hints"][0] == 0.9 and np.isnan(heights["without hints"][1])
    assert {text.get_text() for text in axes.texts} == {"0.75", "0.90", ""}


def test_an_ablation_without_edgespec_or_without_parts(tmp_path, figures):
    cells = [c for c in figures.cells if (c.rtt_ms, c.method) != (50, "edgespec")]
    fewer = replace(figures, cells=cells)
    plot_ablation(tmp_path / "ablation.png", fewer)
    with pytest.raises(EdgespecError, match="edgespec without"):
        plot_ablation(tmp_path / "ablation.png", replace(fewer, methods=["cloud", "edgespec"]))


@pytest.mark.parametrize("plot", [plot_link, plot_ablation])
def test_what_cannot_be_plotted_is_said(tmp_path, figures, plot):
    with pytest.raises(EdgespecError, match="cannot be written"):
        plot(tmp_path / "none" / "plot.png", figures)
    with pytest.raises(EdgespecError, match="nothing to plot"):
        plot(tmp_path / "plot.png", replace(figures, cells=[]))


def test_the_table_has_a_section_an_rtt_and_dashes_for_what_was_not_run(figures):
    table = link_table(figures)
    console = Console(width=130)
    with console.capture() as capture:
        console.print(table)
    lines = capture.get().splitlines()
    body = lines[next(i for i, line in enumerate(lines) if "──" in line) :]
    rows = [" ".join(line.split()) for line in body if any(method in line for method in METHODS)]
    assert rows[0] == "0 cloud 20.0 1.00 120 15.5 61.5 0.43 1.27 21 14 – – –"
    assert rows[1] == "lockstep 30.0 1.50 120 15.5 61.5 0.43 1.27 21 14 31 22 0"
    assert rows[len(METHODS)].startswith("50 cloud 20.0 1.00 ")
    assert rows[len(METHODS) + 1] == "lockstep" + " –" * 12
    assert len(rows) == 2 * len(METHODS)
    assert lines[-1].strip() == "a processor, 2 core(s), Linux"
