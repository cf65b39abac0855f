"""`bench fleet` and `bench crowd`: many devices on one cloud."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

import click

from cli.bench.options import (
    DEVICE_COUNTS,
    DRAFT_LENGTH,
    FLEET_PROFILE,
    METHODS,
    RECORDING,
    SECONDS,
)
from cli.options import (
    DEVICES_COUNT,
    PATH,
    POSITIVE,
    bundle_argument,
    energy_options,
    energy_root,
    json_option,
    plot_option,
)
from edgespec.errors import UsageError


@click.command()
@bundle_argument(required=False)
@FLEET_PROFILE
@RECORDING
@click.option(
    "--devices",
    type=DEVICE_COUNTS,
    show_default="each method's capacity is searched",
    help="Numbers of devices to measure, as in 8,16,24.",
)
@click.option(
    "--most",
    type=DEVICES_COUNT,
    default=256,
    show_default=True,
    help="Largest number of devices to try.",
)
@click.option(
    "--target-rate",
    type=float,
    default=0.0,
    show_default="the profile's",
    help="Target rate of each device, in tokens a second.",
)
@click.option(
    "--seconds", type=SECONDS, default=20.0, show_default=True, help="Seconds of each measurement."
)
@click.option(
    "--limit-seconds",
    type=SECONDS,
    default=840.0,
    show_default=True,
    help="Seconds after which the search starts no new measurement.",
)
@METHODS
@click.option(
    "-m",
    "--mode",
    type=click.Choice(["auto", "edge"]),
    default="auto",
    show_default=True,
    help="Mode of the method edgespec.",
)
@DRAFT_LENGTH
@click.option(
    "--real",
    type=click.IntRange(0, 16),
    default=0,
    show_default=True,
    help="Devices of the method edgespec that run a real draft.",
)
@click.option(
    "--cloud", "cloud_options", default="", metavar="OPTIONS", help="More options for 'cloud-run'."
)
@energy_options
@plot_option(folder=True)
@json_option()
def fleet(bundle: Path | None, as_json: bool, **options: Any) -> None:
    """How many devices one cloud serves at their target rate, by method.

    Devices are simulated: the real loop on real sockets, with drafts replayed from a recording of
    the pair. Without BUNDLE the built-in pair is measured.
    """
    from bench.fleet.run import run
    from bench.fleet.settings import FLEET_METHODS, FleetSettings

    options["devices"] = tuple(dict.fromkeys(options["devices"] or ()))
    options["methods"] = tuple(dict.fromkeys(options["methods"])) or FLEET_METHODS
    options["cloud_options"] = tuple(shlex.split(options["cloud_options"]))
    options["energy"] = energy_root(options)
    run(bundle, FleetSettings(**options), as_json=as_json)


@click.command()
@click.argument("parts", nargs=-1, metavar="[offenders|overhead|churn|model]...")
@click.option("--bundle", type=PATH, show_default="the built-in pair", help="Bundle to serve.")
@FLEET_PROFILE
@RECORDING
@click.option(
    "--seconds", type=SECONDS, default=15.0, show_default=True, help="Seconds of each measurement."
)
@click.option(
    "--polite",
    type=DEVICES_COUNT,
    default=15,
    show_default=True,
    help="Well-behaved devices that share the cloud with an offender.",
)
@click.option(
    "--connected",
    type=DEVICES_COUNT,
    default=256,
    show_default=True,
    help="Sessions in the part overhead.",
)
@click.option(
    "--active",
    type=DEVICES_COUNT,
    default=64,
    show_default=True,
    help="Sessions in the part overhead that write at the same time.",
)
@click.option(
    "--sessions",
    type=POSITIVE,
    default=20_000,
    show_default=True,
    help="Sessions in the part churn.",
)
@json_option()
def crowd(parts: tuple[str, ...], bundle: Path | None, as_json: bool, **options: Any) -> None:
    """What many devices cost the cloud, and one bad device the others.

    The parts, all by default: offenders (well-behaved devices next to one that is greedy, deaf,
    flooding, sending garbage or vanishing), overhead (of scheduler and wire), churn (what short
    sessions leave in memory), model (errors of predicted step times).
    """
    from bench.crowd.cloud import PARTS, CrowdSettings
    from bench.crowd.run import run

    if unknown := [part for part in parts if part not in PARTS]:
        raise UsageError(f"there is no part {unknown[0]!r}; choose from: {', '.join(PARTS)}")
    run(bundle, CrowdSettings(parts=parts or PARTS, **options), as_json=as_json)
