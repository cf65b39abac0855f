"""`bench structured`: answers that follow JSON schemas."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from cli.options import POSITIVE, bundle_argument, json_option


@click.command()
@bundle_argument(required=False)
@click.option("--schemas", type=POSITIVE, default=20, show_default=True, help="Random schemas.")
@click.option(
    "--depth",
    type=click.IntRange(0, 5),
    default=3,
    show_default=True,
    help="Levels of objects and arrays in a schema.",
)
@click.option(
    "--temperature",
    type=click.FloatRange(0.01, 100.0),
    default=0.7,
    show_default=True,
    help="Temperature of every second schema; the others are greedy.",
)
@click.option(
    "-s", "--seed", type=int, default=0, show_default=True, help="Decides schemas and answers."
)
@json_option()
def structured(bundle: Path | None, as_json: bool, **options: Any) -> None:
    """Answer random JSON schemas with and without drafts, and as free text.

    Without a BUNDLE it is the built-in pair. The exit code is 1 if an answer is not valid, or not
    the same in both modes.
    """
    from bench.structured.run import StructuredSettings, run

    run(StructuredSettings(bundle, **options), as_json=as_json)
