"""`bench serve`: what the HTTP server costs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from cli.options import POSITIVE, bundle_argument, json_option

COUNT = click.IntRange(min=0)


@click.command()
@bundle_argument(required=False)
@click.option(
    "--turns", type=POSITIVE, default=40, show_default=True, help="Answers that are compared."
)
@click.option(
    "--tokens",
    type=click.IntRange(2, 900),
    default=64,
    show_default=True,
    help="Tokens of an answer.",
)
@click.option(
    "--streams", type=COUNT, default=64, show_default=True, help="Answers streamed at once."
)
@click.option(
    "--requests",
    type=COUNT,
    default=2000,
    show_default=True,
    help="Requests over which the server's memory is measured.",
)
@click.option("--fuzz", type=COUNT, default=0, show_default=True, help="Bad requests.")
@click.option(
    "-s", "--seed", type=int, default=0, show_default=True, help="Decides the bad requests."
)
@json_option()
def serve(bundle: Path | None, as_json: bool, **options: Any) -> None:
    """Measure the cost of 'edgespec serve' beside the client in a program.

    Without a BUNDLE the target is a layer of random weights, whose steps take almost no time. The
    exit code is 1 if a text is wrong, or a bad request is not refused in order.
    """
    from bench.serve.run import run
    from bench.serve.settings import ServeSettings

    run(ServeSettings(bundle, **options), as_json=as_json)
