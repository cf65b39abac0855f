"""Command `doctor`: what this machine can run."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import get_args

import click

from cli.options import PATH, json_option
from edgespec.config import Backend, CloudSettings
from edgespec.errors import UsageError


@click.command()
@click.option(
    "--exactness",
    "bundle",
    type=PATH,
    metavar="BUNDLE",
    help="Measure whether every way of computing a token gives the same bits here.",
)
@click.option(
    "--tune",
    "tuned",
    type=PATH,
    metavar="BUNDLE",
    help="Measure how many threads the models should have here, and keep that as the default.",
)
@click.option(
    "--backend",
    type=click.Choice(get_args(Backend)),
    default=CloudSettings.backend,
    show_default=True,
    help="Back end to measure; with torch, also what its exactness costs.",
)
@json_option("Print one JSON line instead of the report.")
def doctor(bundle: Path | None, tuned: Path | None, backend: str, as_json: bool) -> None:
    """Report what this machine can run, and which profile fits."""
    from engines.machine.doctor import describe, report

    if bundle and tuned:
        raise UsageError("choose one of --exactness and --tune")
    if tuned:
        _tune(tuned, backend, as_json=as_json)
        return
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


def _tune(folder: Path, backend: str, *, as_json: bool) -> None:
    """Measures a bundle's models, keeps their numbers of threads, and reports them."""
    from edgespec.manifest import Bundle
    from engines.machine.threads import keep_threads
    from engines.step_times import BUSY_LOAD
    from engines.tuning import report, tune_bundle

    bundle = Bundle.open(folder)
    load_average, *_ = os.getloadavg()
    found = list(tune_bundle(bundle, backend))
    path = keep_threads(bundle, {one.model: one.threads for one in found if one.threads})
    if as_json:
        models = [one._asdict() for one in found]
        figures = {"models": models, "file": str(path), "load_average": round(load_average, 2)}
        click.echo(json.dumps(figures))
        return
    click.echo(f"{report(found)}\nkept in {path}")
    if load_average > BUSY_LOAD:
        click.echo(f"the machine was busy (load {load_average:.1f}): tune again when it is not")
