"""The command `serve`."""

from __future__ import annotations

import os
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import click

from cli.options import (
    EDGE,
    PATH,
    POSITIVE,
    SECONDS,
    bundle_argument,
    bundle_key_option,
    check_offline,
    connect_option,
    connect_timeout_option,
    device_key_option,
    drafter_option,
    give_up_option,
    mode_option,
    offline_options,
    sensors_option,
    server_key_option,
    threads_option,
)
from edgespec.config import EdgeSettings
from edgespec.errors import UsageError


@click.command()
@bundle_argument(required=False)
@click.option(
    "--demo", is_flag=True, help="Serve the built-in pair, with a cloud of its own on this machine."
)
@connect_option(EDGE.connect, metavar="ENDPOINT", help="Endpoint of the cloud.")
@server_key_option
@device_key_option
@bundle_key_option
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option(
    "--port",
    type=click.IntRange(0, 65535),
    default=8080,
    show_default=True,
    help="Port to listen on; 0: any free one.",
)
@click.option(
    "--api-key",
    type=PATH,
    metavar="FILE",
    show_default="$EDGESPEC_API_KEY",
    help="File with the key that clients must send; required beyond this machine.",
)
@click.option("--name", default="", show_default="the target's", help="Name of the model.")
@click.option(
    "--cors",
    multiple=True,
    metavar="ORIGIN",
    help="Let web pages of this origin use the API; may be repeated.",
)
@drafter_option
@mode_option
@threads_option("Threads of the draft.", automatic="tuned, or the profile's")
@click.option(
    "--answers", type=POSITIVE, default=64, show_default=True, help="Answers written at once."
)
@connect_timeout_option
@give_up_option
@offline_options
@sensors_option
@click.option(
    "--drain-timeout",
    type=SECONDS,
    default=30.0,
    show_default=True,
    help="Seconds to finish answers after SIGTERM or Ctrl-C.",
)
def serve(bundle: Path | None, demo: bool, **options: Any) -> None:
    """Serve OpenAI's API on this device, with the target in the cloud.

    Any client of that API can use it, at http://HOST:PORT/v1.
    """
    if demo == (bundle is not None):
        raise UsageError("pass the BUNDLE that 'edgespec export' wrote, or --demo, and not both")
    check_offline(options)
    from edge_runtime.api.app import ApiSettings
    from edge_runtime.api.serve import read_api_key, serve
    from edgespec.manifest import Bundle

    edge = EdgeSettings(
        connect=options["connect"],
        server_key=options["server_key"],
        key=options["key"],
        drafter=options["drafter"],
        mode=options["mode"],
        threads=options["threads"],
        connect_timeout=options["connect_timeout"],
        give_up=options["give_up"],
        offline=options["offline"],
        offline_after=options["offline_after"],
    )
    api = ApiSettings(
        model=options["name"],
        host=options["host"],
        api_key=read_api_key(options["api_key"], os.environ.get("EDGESPEC_API_KEY")),
        cors=options["cors"],
        answers=options["answers"],
        sensors=options["sensors"],
    )
    run = partial(serve, api=api, port=options["port"], drain_timeout=options["drain_timeout"])
    if bundle is not None:
        run(Bundle.open(bundle, options["bundle_key"]), edge)
        return
    from bench.lab.builtin import builtin_bundle
    from bench.lab.processes import cloud

    pair = builtin_bundle()
    with cloud(pair.folder) as endpoint:
        run(pair, replace(edge, connect=endpoint))
