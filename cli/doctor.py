"""Command `doctor`: what this machine can run."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import get_args

import click

from cli.options import PATH, json_option
from edgespec.config import Backend, CloudSettings


@click.command()
@click.option(
    "--exactness",
    "bundle",
    type=PATH,
    metavar="BUNDLE",
    help="Measure whether every way of computing a token gives the same bits here.",
)
@click.option(
    "--backend",
    type=click.Choice(get_args(Backend)),
    default=CloudSettings.backend,
    show_default=True,
    help="Back end to measure; with torch, also what its exactness costs.",
)
@json_option("Print one JSON line instead of the report.")
def doctor(bundle: Path | None, backend: str, as_json: bool) -> None:
    """Report what this machine can run, and which profile fits."""
    from engines.machine.doctor import describe, report

    if bundle is None:
        machine = describe()
        click.echo(json.dumps(machine.as_dict()) if as_json else report(machine))
        return
    from edgespec.manifest import Bundle
    from engines.exactness import doctor

    found = doctor(Bundle.open(bundle), backend)
    click.echo(json.dumps(found.as_dict()) if as_json else found.report())
    if not found.exact:
        sys.exit(1)
