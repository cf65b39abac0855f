"""`bench step`: one step of a draft and of a target on this machine's CPU."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from cli.options import NumberList, json_option, plot_option

SHAPES = ("smollm2-135m", "qwen3-0.6b", "llama-3.2-1b", "tiny")
THREAD_COUNTS = NumberList(int, "numbers of threads", "1,2", at_least=1, at_most=1024)


@click.command()
@click.option(
    "--shape",
    type=click.Choice(SHAPES),
    default="smollm2-135m",
    show_default=True,
    help="Model to measure; all but the built-in one have random weights.",
)
@click.option(
    "--precision",
    "precisions",
    type=click.Choice(["fp32", "int8", "int4"]),
    multiple=True,
    show_default="all",
    help="Precision of the weights; may be repeated.",
)
@click.option(
    "-t",
    "--threads",
    type=THREAD_COUNTS,
    default="",
    metavar="LIST",
    show_default="1, 2, 4, … up to the cores",
    help="Numbers of threads, as in 1,2.",
)
@click.option("--quick", is_flag=True, help="Measure fewer steps, and each less often.")
@click.option(
    "--llama-bench",
    type=click.Path(path_type=Path),
    metavar="PROGRAM",
    help="Also measure llama.cpp with this program, on the same weights.",
)
@plot_option()
@json_option()
def step(precisions: tuple[Any, ...], as_json: bool, **options: Any) -> None:
    """Steps of draft and target by precision, threads, tokens and rows.

    The draft is the target itself, so both have all its layers. --llama-bench needs llama-quantize
    beside it; ratios above 1 mean that edgespec is faster.
    """
    from bench.step.run import run
    from bench.step.settings import PRECISIONS, StepSettings

    chosen = tuple(dict.fromkeys(precisions)) or PRECISIONS
    run(StepSettings(precisions=chosen, **options), as_json=as_json)
