"""The tables of `edgespec bench acceptance`."""

from __future__ import annotations

from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from bench.acceptance.lockstep_rounds import LENGTHS
from edgespec.manifest import Bundle


def print_tables(console: Console, figures: dict[str, Any], bundle: Bundle) -> None:
    target = bundle.manifest.target
    console.print(
        f"{target.origin.name}, {target.precisions.layers}; draft {figures['drafter']}; "
        f"{figures['prompts']} prompts, answers of at most {figures['max_tokens']} tokens"
    )
    ways = [figures, figures["sampled"]] if "sampled" in figures else [figures]
    for way in ways:
        console.print(_categories(way))
    if figures["exits"]:
        console.print(_exits(ways, bundle))
    errors = [_number(way["calibration_error"], ".3f") for way in ways]
    names = [_name(way) for way in ways]
    if figures["calibration_error"] is not None:
        draft = bundle.manifest.drafts[figures["drafter"]]
        said = ", ".join(f"{error} {name}" for error, name in zip(errors, names, strict=True))
        console.print(
            f"calibration error of the draft: {said}"
            + ("" if draft.calibration else " (not calibrated: its own probabilities)")
        )
    console.print(
        f"one token: draft {figures['draft_step_ms']:.2f} ms, target "
        f"{figures['target_step_ms']:.2f} ms, ratio {figures['step_ratio']:.2f} "
        f"({figures['threads']} thread(s), median)"
    )


def _name(way: dict[str, Any]) -> str:
    temperature, top_p = way["sampling"]["temperature"], way["sampling"]["top_p"]
    return f"T {temperature:g}, top-p {top_p:g}" if temperature else "greedy"


def _categories(way: dict[str, Any]) -> Table:
    table = Table(
        title=f"{_name(way)}: agreement, and accepted tokens a round by draft length",
        box=box.SIMPLE,
        padding=(0, 1, 0, 0),
        caption=f"{way['tokens']} tokens; a round also yields the target's own token",
    )
    table.add_column("category")
    for column in ("agreement", *map(str, LENGTHS)):
        table.add_column(column, justify="right")
    for name, agreement in way["agreement_by_category"].items():
        counts = way["accepted_per_round_by_category"][name]
        table.add_row(name, f"{agreement:.3f}", *(f"{count:.2f}" for count in counts))
    table.add_section()
    counts = way["accepted_per_round"]
    table.add_row("overall", f"{way['agreement']:.3f}", *(f"{count:.2f}" for count in counts))
    return table


def _exits(ways: list[dict[str, Any]], bundle: Bundle) -> Table:
    calibrated = {s.end for s in bundle.manifest.target.segments if s.calibration}
    table = Table(
        title="exit heads: agreement, and calibration error",
        box=box.SIMPLE,
        caption="" if calibrated else "not calibrated: the heads' own probabilities",
    )
    table.add_column("after layer", justify="right")
    for way in ways:
        table.add_column(_name(way), justify="right")
        table.add_column("error", justify="right")
    for rows in zip(*(way["exits"] for way in ways), strict=True):
        figures = [
            cell
            for row in rows
            for cell in (f"{row['agreement']:.3f}", f"{row['calibration_error']:.3f}")
        ]
        table.add_row(str(rows[0]["layer"]), *figures)
    return table


def _number(value: float | None, form: str) -> str:
    return "–" if value is None else format(value, form)
