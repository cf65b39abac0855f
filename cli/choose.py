"""`choose`: which draft to make for a target, before anything is trained."""

from __future__ import annotations

from typing import Any

import click

from cli.calibration import CORPUS, DEVICE, SEED
from cli.export import DEFAULT_PROFILE
from cli.options import (
    MILLISECONDS,
    PATH,
    POSITIVE,
    NumberList,
    Size,
    json_option,
    threads_option,
)

DEPTHS = NumberList(int, "numbers of layers", "8,16", at_least=1)
TIMES = NumberList(float, "milliseconds", "20,1.5", at_least=0, at_most=1e6)


@click.command()
@click.argument("target")
@click.option(
    "--for",
    "profile",
    default=DEFAULT_PROFILE,
    show_default=True,
    metavar="PROFILE",
    help="Hardware and precision of the device.",
)
@click.option(
    "--rtt",
    "rtts_ms",
    type=MILLISECONDS,
    default="10,50",
    show_default=True,
    help="Round-trip times to the cloud in milliseconds.",
)
@click.option("--memory", type=Size(), help="Most memory of a draft on the device, as in 512M.")
@click.option("--disk", type=Size(), help="Most disk space of a draft on the device, as in 100M.")
@click.option(
    "--depths",
    type=DEPTHS,
    default="",
    show_default="0.2, 0.4, 0.6 and 0.8 of the target's",
    help="Layers of the shallower drafts.",
)
@click.option(
    "--shapes",
    type=PATH,
    metavar="FILE",
    show_default="the curve of SmolLM2",
    help="Agreement by depth, printed by 'bench shapes --json'.",
)
@click.option(
    "--target-ms",
    type=TIMES,
    default="",
    metavar="STEP,FURTHER",
    show_default="measured here",
    help="The cloud's step of one token, and each further token of a step.",
)
@CORPUS
@click.option(
    "--tokens",
    type=POSITIVE,
    default=20_000,
    show_default=True,
    help="Tokens of text; missing text is written first.",
)
@threads_option("Threads of each model.", automatic="all that may be used")
@DEVICE
@SEED
@json_option()
def choose(
    target: str, memory: int | None, disk: int | None, as_json: bool, **options: Any
) -> None:
    """Find out which draft to make for TARGET, before anything is trained.

    Measures copies of TARGET at int8 and int4, and the steps of shallower drafts, here. Ranks them
    by the tokens a second to expect and by what they cost the cloud, and names the commands.
    """
    from bench.choice.candidates import Bounds
    from bench.choice.run import ChoiceSettings, run

    bounds = Bounds(memory or 0, disk or 0)
    run(ChoiceSettings(target, bounds=bounds, **options), as_json=as_json)
