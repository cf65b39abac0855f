"""`bench plan`: hardware that is not here, in virtual time."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from cli.bench.options import DEVICE_COUNTS, SECONDS
from cli.options import (
    DEVICES_COUNT,
    MILLISECONDS,
    PATH,
    POSITIVE,
    NumberList,
    json_option,
    max_tokens_option,
    plot_option,
)
from edgespec.errors import UsageError

RATES = NumberList(float, "tokens a second", "10,15")


@click.command()
@click.argument("files", type=PATH, nargs=-1, metavar="[PROFILE.json]...")
@click.option(
    "--rtt",
    "rtts",
    type=MILLISECONDS,
    show_default="the profile's",
    help="Round-trip times in milliseconds.",
)
@click.option(
    "--prompts",
    type=POSITIVE,
    show_default="12, or as many as --link has",
    help="Prompts to answer with each method.",
)
@click.option(
    "--recording",
    default="",
    metavar="FILE|strong|small",
    show_default="the profile's",
    help="Recorded answers of the pair.",
)
@click.option(
    "--record",
    type=PATH,
    metavar="FILE",
    help="Record the answers of a pair instead; the argument is its BUNDLE.",
)
@click.option(
    "--limit",
    type=POSITIVE,
    default=4,
    show_default=True,
    help="With --record, prompts of each category.",
)
@max_tokens_option(64, "With --record, the longest answer, in tokens.")
@click.option(
    "--link", type=PATH, metavar="FILE", help="Compare with the JSON line of 'bench link'."
)
@click.option(
    "--tolerance",
    type=click.FloatRange(0, 10),
    default=0.15,
    show_default=True,
    help="With --link, the largest relative difference that is accepted.",
)
@click.option(
    "--fleet", is_flag=True, help="Find how many devices one cloud serves at a target rate."
)
@click.option(
    "--target-rate",
    "rates",
    type=RATES,
    default="15",
    show_default=True,
    help="With --fleet, target rates in tokens a second.",
)
@click.option(
    "--devices",
    type=DEVICE_COUNTS,
    show_default="the capacity is searched",
    help="With --fleet, numbers of devices, as in 8,16.",
)
@click.option(
    "--method",
    "methods",
    multiple=True,
    show_default="all but lockstep",
    help="With --fleet, a method to simulate; may be repeated.",
)
@click.option(
    "--think",
    type=SECONDS,
    default=0.0,
    show_default=True,
    help="With --fleet, seconds between two answers of a device.",
)
@click.option(
    "--most",
    type=DEVICES_COUNT,
    default=64,
    show_default=True,
    help="With --fleet, the largest number of devices to try.",
)
@click.option(
    "--seconds",
    type=SECONDS,
    default=10.0,
    show_default=True,
    help="With --fleet, virtual seconds of each run.",
)
@plot_option()
@json_option()
def plan(files: tuple[Path, ...], as_json: bool, **options: Any) -> None:
    """Every method on hardware that is not here: the real loops in virtual time.

    PROFILE.json holds step times; without it the built-in profiles are used.
    """
    if options["fleet"]:
        _fleet(files, options, as_json=as_json)
        return
    if (options["record"] or options["link"]) and len(files) > 1:
        raise UsageError("--record takes one BUNDLE at most, and --link one PROFILE.json")
    if sum(bool(options[name]) for name in ("record", "link", "plot")) > 1:
        raise UsageError("--record, --link and --plot exclude each other")
    file = files[0] if files else None
    rtts, recording = options["rtts"] or (), options["recording"]
    if options["record"]:
        from bench.plan import record_pair

        limit, max_tokens = options["limit"], options["max_tokens"]
        record_pair.run(record_pair.RecordSettings(options["record"], file, limit, max_tokens))
    elif options["link"]:
        from bench.plan.link import LinkComparison
        from bench.plan.link import run as compare

        prompts = options["prompts"] or 0
        comparison = LinkComparison(
            options["link"], options["tolerance"], file, recording, rtts, prompts
        )
        compare(comparison, as_json=as_json)
    else:
        from bench.plan.run import PlanSettings, run

        prompts = options["prompts"] or 12
        run(PlanSettings(files, recording, rtts, prompts, options["plot"]), as_json=as_json)


def _fleet(files: tuple[Path, ...], options: dict[str, Any], *, as_json: bool) -> None:
    from bench.plan.fleet import DEFAULT_RUN, FleetPlanSettings, run
    from bench.plan.simulated_fleet import FleetRun

    if options["record"] or options["link"]:
        raise UsageError("--fleet, --record and --link exclude each other")
    settings = FleetPlanSettings(
        profiles=files,
        recording=options["recording"],
        run=FleetRun(
            rtts_ms=options["rtts"] or DEFAULT_RUN.rtts_ms,
            seconds=options["seconds"],
            think_seconds=options["think"],
        ),
        target_rates=options["rates"],
        devices=tuple(dict.fromkeys(options["devices"] or ())),
        methods=tuple(dict.fromkeys(options["methods"])) or FleetPlanSettings.methods,
        max_devices=options["most"],
        plot=options["plot"],
    )
    run(settings, as_json=as_json)
