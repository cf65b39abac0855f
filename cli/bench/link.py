"""`bench link`: every method at every distance."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from cli.bench.options import DRAFT_LENGTH, METHODS, PROMPTS
from cli.options import (
    MILLISECONDS,
    POSITIVE,
    bundle_argument,
    energy_options,
    energy_root,
    json_option,
    max_tokens_option,
    plot_option,
)


@click.command()
@bundle_argument(required=False)
@click.option(
    "--rtt",
    "rtts",
    type=MILLISECONDS,
    default="0,10,25,50,100,200",
    show_default=True,
    help="Round-trip times in milliseconds.",
)
@click.option(
    "--jitter", type=float, default=0.0, show_default=True, help="Jitter in milliseconds."
)
@click.option(
    "--mbit",
    type=float,
    default=0.0,
    show_default="unlimited",
    help="Bandwidth in Mbit/s, each way.",
)
@click.option(
    "--stall-every",
    type=float,
    default=0.0,
    show_default="no stalls",
    help="Seconds between two stalls of the link.",
)
@click.option(
    "--stall",
    "stall_ms",
    type=float,
    default=200.0,
    show_default=True,
    help="Length of a stall in milliseconds.",
)
@METHODS
@click.option("--ablation", is_flag=True, help="Also measure edgespec with each part switched off.")
@click.option(
    "--useless", is_flag=True, help="Also measure edgespec with a draft that is never right."
)
@click.option(
    "--draft",
    metavar="PROFILE",
    default="",
    show_default="the first",
    help="Draft of the bundle to measure, on both sides.",
)
@DRAFT_LENGTH
@PROMPTS
@click.option(
    "--limit", type=POSITIVE, default=2, show_default=True, help="Prompts of each category."
)
@max_tokens_option(64)
@click.option(
    "--temperature",
    type=float,
    default=0.0,
    show_default=True,
    help="Sampling temperature; 0 is greedy.",
)
@energy_options
@plot_option(folder=True)
@json_option()
def link(bundle: Path | None, as_json: bool, **options: Any) -> None:
    """Every method at every distance: two processes with an emulated link between them.

    Without BUNDLE the built-in pair is measured.
    """
    from bench.link.run import run
    from bench.link.settings import LinkSettings
    from bench.link.shape import LinkShape

    shape = LinkShape(
        jitter_ms=options.pop("jitter"),
        mbit=options.pop("mbit"),
        stall_every=options.pop("stall_every"),
        stall_ms=options.pop("stall_ms"),
    )
    rtts = options.pop("rtts")
    options["energy"] = energy_root(options)
    run(bundle, LinkSettings(rtts_ms=rtts, shape=shape, **options), as_json=as_json)
