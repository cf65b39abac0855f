"""`edgespec build`; `cli.main` finds it here."""

from __future__ import annotations

from pathlib import Path
from typing import get_args

import click

from cli.main import FOLDER, POSITIVE
from edgespec.manifest import Bundle, HalfFloat


@click.command()
@click.argument("bundle", type=FOLDER)
@click.option("--profile", required=True, help="Hardware to build for; it must be this machine's.")
@click.option(
    "--graphs",
    type=click.Choice(["draft", "target", "all"]),
    help="What to build. [default: the draft; with the profile cuda everything]",
)
@click.option(
    "--draft", default="", help="Profile of the draft. [default: --profile, or what else fits]"
)
@click.option(
    "--capacity",
    "capacities",
    type=POSITIVE,
    multiple=True,
    help="Positions of a slot; may be repeated, each is an engine with all weights. "
    "[default: those of the profile]",
)
@click.option(
    "--floats",
    type=click.Choice(get_args(HalfFloat)),
    default="fp16",
    show_default=True,
    help="Type of activations; bf16 where fp16 overflows.",
)
@click.option("--force", is_flag=True, help="Build also what is up to date.")
def build(
    bundle: Path,
    profile: str,
    graphs: str | None,
    draft: str,
    capacities: tuple[int, ...],
    floats: str,
    force: bool,
) -> None:
    """Build TensorRT engines from the graphs of BUNDLE, on the machine that will run them."""
    from export.tensorrt.build import build as run
    from export.tensorrt.plan import BuildSettings

    settings = BuildSettings(profile, graphs, draft, capacities, floats, force)  # type: ignore[arg-type]
    run(Bundle.open(bundle), settings, lambda sentence: click.echo(sentence, err=True))
