"""Tables of `bench step`: models, one-token steps, all steps, and ratios to llama.cpp."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

from rich.table import Table

from bench.lab.tables import MIN_WIDTH_COLUMNS, Column, table
from bench.step.figures import StepFigures, TimedStep
from bench.step.settings import ROLES
from engines.step_times import BUSY_LOAD


class _Line(NamedTuple):
    """Steps of one model with the same number of rows."""

    steps: Sequence[TimedStep]

    @property
    def first(self) -> TimedStep:
        return self.steps[0]

    def of(self, tokens: int, *, prompt: bool) -> TimedStep | None:
        found = (s for s in self.steps if s.tokens == tokens and (s.past_tokens == 0) == prompt)
        return next(found, None)


MODEL_COLUMNS = (
    Column("model", "first.role", left=True, once=True),
    Column("precision", "first.precision", left=True, once=True),
    Column("threads", "first.threads"),
)
LOADED_COLUMNS = (
    Column("model", "role", left=True, once=True),
    Column("precision", "precision", left=True, once=True),
    Column("threads", "threads"),
    Column("nodes", "nodes"),
    Column("weights\nMB", "weights_mb", ".0f"),
    Column("load\ns", "load_s", ".1f"),
    Column("first step\nms", "first_step_ms", ".2f"),
)


def step_tables(figures: StepFigures) -> list[Table]:
    times = _table(figures, "ms a step", "ms", ".2f", batches=True)
    tables = [_models_table(figures), _one_token_table(figures), times]
    if figures.llama:
        title = "ratio to llama.cpp, one row"
        tables.append(_table(figures, title, "ratio_to_llama", ".2f", batches=False))
    return tables


def _one_token_table(figures: StepFigures) -> Table:
    columns = [
        *MODEL_COLUMNS,
        Column("ms", "first.ms", ".2f"),
        Column("Python\nms", "first.python_ms", ".3f"),
        Column("Python\n%", "first.python_share", ".1f", scale=100),
        Column("band-\nwidth %", "first.bandwidth_share", ".0f", scale=100),
    ]
    if figures.llama:
        columns += [
            Column("llama.cpp\nms", "first.llama_ms", ".2f"),
            Column("ratio", "first.ratio_to_llama", ".2f"),
        ]
    lines = [_Line([step]) for role in ROLES for step in figures.one_token(role)]
    speeds = [f"{threads}: {speed:.1f}" for threads, speed in figures.bandwidth_gb_s.items()]
    caption = f"GB/s of reading memory by threads: {', '.join(speeds)}"
    if figures.llama:
        caption += f"; llama.cpp: {figures.llama.build}; ratio above 1: edgespec is faster"
    if figures.load_average > BUSY_LOAD:
        caption += f"; the machine was busy (load {figures.load_average:.1f}): measure again"
    title = f"{figures.shape}: one token, one row"
    return table(
        title,
        columns,
        lines,
        section=lambda line: line.first.role,
        caption=caption,
        min_width=MIN_WIDTH_COLUMNS,
    )


def _models_table(figures: StepFigures) -> Table:
    models = sorted(figures.models, key=lambda model: ROLES.index(model.role))
    title = f"{figures.shape}: models"
    return table(title, LOADED_COLUMNS, models, section=lambda model: model.role)


def _table(figures: StepFigures, title: str, attribute: str, form: str, *, batches: bool) -> Table:
    """One line for each model and number of rows, one column for each number of tokens."""
    lines = _lines(figures, batches=batches)
    tokens = sorted({s.tokens for s in figures.steps if s.past_tokens})
    prompts = sorted({s.tokens for s in figures.steps if not s.past_tokens})
    columns = [
        *MODEL_COLUMNS,
        *([Column("rows", "first.rows")] if batches else []),
        *(Column(_tokens(n), _of(n, attribute, prompt=False), form) for n in tokens),
        *(Column(f"prompt\nof {n}", _of(n, attribute, prompt=True), form) for n in prompts),
    ]
    return table(
        f"{figures.shape}: {title}",
        columns,
        lines,
        section=_section,
        min_width=MIN_WIDTH_COLUMNS,
    )


def _section(line: _Line) -> object:
    return line.first.role, line.first.precision


def _lines(figures: StepFigures, *, batches: bool) -> list[_Line]:
    groups: dict[tuple[object, ...], list[TimedStep]] = {}
    for step in sorted(figures.steps, key=lambda step: ROLES.index(step.role)):
        if batches or step.rows == 1:
            key = (step.role, step.precision, step.threads, step.rows)
            groups.setdefault(key, []).append(step)
    return [_Line(steps) for steps in groups.values()]


def _of(tokens: int, attribute: str, *, prompt: bool) -> Callable[[_Line], object]:
    return lambda line: getattr(line.of(tokens, prompt=prompt), attribute, None)


def _tokens(count: int) -> str:
    return f"{count} token{'s' * (count > 1)}"
