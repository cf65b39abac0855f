"""`demo` and `bench local`: device and cloud on this machine."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from cli.options import (
    bundle_argument,
    energy_options,
    energy_root,
    json_option,
    max_tokens_option,
    threads_option,
)


@click.command()
@max_tokens_option(64)
def demo(max_tokens: int) -> None:
    """Export the built-in pair, run device and cloud here, and check the answers."""
    from bench.demo import demo

    demo(max_tokens)


@click.command()
@bundle_argument(required=False)
@click.option(
    "--drafter",
    default="",
    metavar="PROFILE",
    show_default="the bundle's first draft",
    help="Draft of the bundle.",
)
@threads_option("Threads of each side.")
@energy_options
@json_option()
def local(bundle: Path | None, drafter: str, threads: int, as_json: bool, **options: Any) -> None:
    """Step times, overhead of loop and wire, and speed with and without drafting.

    Without BUNDLE the built-in pair is measured.
    """
    from bench.local import run

    energy = energy_root(options)
    run(bundle, drafter=drafter, threads=threads, as_json=as_json, energy=energy)
