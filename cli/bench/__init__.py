"""The group `bench`: commands that measure."""

from __future__ import annotations

import click

from cli.lazy import LazyGroup

BENCHES = {
    "acceptance": "cli.bench.acceptance:acceptance",
    "arm": "cli.bench.hardware:arm",
    "chaos": "cli.bench.chaos:chaos",
    "crowd": "cli.bench.fleet:crowd",
    "export": "cli.bench.memory:export",
    "fleet": "cli.bench.fleet:fleet",
    "gpu": "cli.bench.hardware:gpu",
    "link": "cli.bench.link:link",
    "load": "cli.bench.memory:load",
    "local": "cli.bench.local:local",
    "plan": "cli.bench.plan:plan",
    "serve": "cli.bench.serve:serve",
    "shapes": "cli.bench.acceptance:shapes",
    "structured": "cli.bench.structured:structured",
    "step": "cli.bench.step:step",
}


@click.group(cls=LazyGroup, places=BENCHES)
def bench() -> None:
    """Measure; each bench prints a table, and with --json one line of JSON at the end."""
