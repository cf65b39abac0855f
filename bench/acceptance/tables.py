"""Tables of `edgespec bench acceptance`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

from rich.console import Console
from rich.table import Table

from bench.acceptance.figures import AcceptanceFigures, AnswerFigures, ExitFigures
from bench.acceptance.lockstep_rounds import LENGTHS
from bench.lab.tables import Column, table
from edgespec.manifest import Bundle


class _Category(NamedTuple):
    name: str
    agreement: float
    accepted: Sequence[float]
    """Mean accepted tokens of a round, by draft length."""


ExitRow = tuple[ExitFigures, ...]
"""One exit head, with one entry for each set of sampling parameters."""


def print_tables(console: Console, figures: AcceptanceFigures, bundle: Bundle) -> None:
    target = bundle.manifest.target
    console.print(
        f"{target.origin.name}, {target.precisions.layers}; draft {figures.drafter}; "
        f"{figures.prompts} prompts, answers of at most {figures.max_tokens} tokens"
    )
    for answers in figures.by_sampling:
        console.print(_categories(answers))
    if figures.exits:
        console.print(_exits(figures.by_sampling, bundle))
    if figures.calibration_error is not None:
        console.print(_calibration(figures, bundle))
    console.print(
        f"one token: draft {figures.draft_step_ms:.2f} ms, target "
        f"{figures.target_step_ms:.2f} ms, ratio {figures.step_ratio:.2f} "
        f"({figures.threads} thread(s), median)"
    )


def _calibration(figures: AcceptanceFigures, bundle: Bundle) -> str:
    errors = ", ".join(
        f"{answers.calibration_error:.3f} {answers.sampling.name}"
        for answers in figures.by_sampling
        if answers.calibration_error is not None
    )
    calibrated = bundle.manifest.drafts[figures.drafter].calibration is not None
    note = "" if calibrated else " (not calibrated: its own probabilities)"
    return f"calibration error of the draft: {errors}{note}"


def _categories(answers: AnswerFigures) -> Table:
    rows = [
        _Category(name, agreement, answers.accepted_per_round_by_category[name])
        for name, agreement in answers.agreement_by_category.items()
    ]
    overall = _Category("overall", answers.agreement, answers.accepted_per_round)
    return table(
        f"{answers.sampling.name}: agreement, and accepted tokens a round by draft length",
        [
            Column("category", "name", left=True),
            Column("agreement", "agreement", ".3f"),
            *(Column(str(n), _accepted(i), ".2f") for i, n in enumerate(LENGTHS)),
        ],
        [*rows, overall],
        section=lambda row: row is overall,
        caption=f"{answers.tokens} tokens; a round also yields the target's own token",
    )


def _accepted(index: int) -> Callable[[_Category], float]:
    return lambda row: row.accepted[index]


def _exits(results: Sequence[AnswerFigures], bundle: Bundle) -> Table:
    calibrated = any(segment.calibration for segment in bundle.manifest.target.segments)
    columns = [Column("after layer", lambda row: row[0].layer)]
    for index, answers in enumerate(results):
        columns.append(Column(answers.sampling.name, _agreement(index), ".3f"))
        columns.append(Column("error", _error(index), ".3f"))
    return table(
        "exit heads: agreement, and calibration error",
        columns,
        list(zip(*(answers.exits for answers in results), strict=True)),
        caption="" if calibrated else "not calibrated: the heads' own probabilities",
    )


def _agreement(index: int) -> Callable[[ExitRow], float]:
    return lambda row: row[index].agreement


def _error(index: int) -> Callable[[ExitRow], float]:
    return lambda row: row[index].calibration_error
