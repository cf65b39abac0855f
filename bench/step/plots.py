"""Plot of step times: by threads with llama.cpp's, and by rows."""

from __future__ import annotations

from pathlib import Path

from bench.lab.plots import Lines, Series, write_plot
from bench.step.figures import StepFigures, TimedStep
from bench.step.settings import ROLES


def plot_steps(path: Path, figures: StepFigures) -> None:
    """The suffix of `path` selects the file format. Raises `EdgespecError` if the file cannot be
    written."""
    names = list(dict.fromkeys(step.precision for step in figures.steps))
    write_plot(
        path,
        [_by_threads(figures, name) for name in names]
        + [_by_rows(figures, name) for name in names],
        title=f"{figures.shape}: steps of a draft and of a target",
        across=len(names),
    )


def _by_threads(figures: StepFigures, precision: str) -> Lines:
    """One-token steps of draft and target, and llama.cpp's beside the draft."""
    series = []
    for role in ROLES:
        steps = [s for s in figures.one_token(role) if s.precision == precision]
        threads = [step.threads for step in steps]
        series.append(Series(role, [step.ms for step in steps], threads))
        compared = [s for s in steps if s.llama_ms is not None]
        if role == "draft" and compared:
            times = [step.llama_ms or 0.0 for step in compared]
            series.append(Series("llama.cpp", times, [s.threads for s in compared], role="part"))
    ticks = list(figures.bandwidth_gb_s)
    return Lines(series, f"{precision}, one token", "threads", "ms", ticks=ticks, doubling=True)


def _by_rows(figures: StepFigures, precision: str) -> Lines:
    """Steps of the target with the most threads, a line for each number of tokens."""
    most = max(figures.bandwidth_gb_s)
    steps = [
        step
        for step in figures.steps
        if (step.role, step.precision, step.threads) == ("target", precision, most)
        and step.past_tokens
    ]
    groups: dict[int, list[TimedStep]] = {}
    for step in steps:
        groups.setdefault(step.tokens, []).append(step)
    series = [
        Series(f"{tokens} token(s)", [step.ms for step in group], [step.rows for step in group])
        for tokens, group in groups.items()
    ]
    ticks = sorted({step.rows for step in steps})
    title = f"{precision}, target, {most} thread(s)"
    return Lines(series, title, "rows", "ms", ticks=ticks, doubling=True)
