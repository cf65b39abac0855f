"""Commands of the cloud's side: `cloud-run`, `top` and `keygen`."""

from __future__ import annotations

from pathlib import Path
from typing import Any, get_args

import click

from cli.options import (
    PATH,
    POSITIVE,
    SECONDS,
    Size,
    bundle_argument,
    bundle_key_option,
    connect_option,
    energy_options,
    energy_root,
    json_option,
    threads_option,
    trace_option,
)
from edgespec.config import STATUS_URL, Backend, CloudSettings
from edgespec.errors import UsageError
from edgespec.logs import Format, Level, configure

DEFAULT = CloudSettings()


@click.command("cloud-run")
@bundle_argument()
@click.option(
    "-b",
    "--bind",
    default=DEFAULT.bind,
    show_default=True,
    metavar="ENDPOINT",
    help="Endpoint on which devices connect.",
)
@click.option(
    "--key",
    type=PATH,
    metavar="FILE",
    help="File with the secret key, required if other machines can connect.",
)
@click.option(
    "--clients",
    type=PATH,
    metavar="FOLDER",
    help="Folder of device keys; only these devices connect, and a removed key is shut out.",
)
@click.option(
    "--any-client",
    is_flag=True,
    help="Admit every device that knows the cloud's public key.",
)
@bundle_key_option
@click.option(
    "--max-sessions",
    type=POSITIVE,
    default=DEFAULT.max_sessions,
    show_default=True,
    help="Most sessions open at once, including those that wait for memory.",
)
@click.option(
    "--sessions-per-device",
    type=click.IntRange(min=0),
    default=DEFAULT.sessions_per_device,
    show_default="a quarter of --max-sessions",
    help="Most unfinished sessions of one device; a further one is asked to try again.",
)
@click.option(
    "--kv-memory",
    type=Size(),
    default=DEFAULT.kv_memory,
    metavar="SIZE",
    show_default="a quarter of the free memory, of a GPU's memory half",
    help="Memory for all KV caches, as in 512M or 4G; the draft's cache is part of it.",
)
@click.option(
    "--device-quota",
    type=PATH,
    metavar="FILE",
    help="JSON file with each device's sessions, bytes and ids a second, and tokens a day.",
)
@click.option(
    "--share-prefixes",
    is_flag=True,
    help="Compute a common prompt prefix once for devices with different keys too.",
)
@click.option(
    "--max-batch-rows",
    type=click.IntRange(min=0),
    default=DEFAULT.max_batch_rows,
    show_default="no bound",
    help="Most sessions in one step of the target.",
)
@click.option(
    "--max-draft",
    type=click.IntRange(1, 64),
    default=DEFAULT.max_draft,
    show_default=True,
    help="Most draft tokens verified in one round.",
)
@click.option(
    "--prefill-chunk",
    type=click.IntRange(2, 4096),
    default=DEFAULT.prefill_chunk,
    show_default=True,
    help="Most prompt tokens of one session in one step.",
)
@click.option(
    "--hints/--no-hints",
    default=DEFAULT.hints,
    show_default=True,
    help="Run the exit heads for devices that ask for hints.",
)
@click.option(
    "--backend",
    type=click.Choice(get_args(Backend)),
    default=DEFAULT.backend,
    show_default=True,
    help="Back end of the target; all but torch-fast are made to be exact, see docs/gpu.md.",
)
@click.option(
    "--draft",
    default=DEFAULT.draft,
    metavar="PROFILE",
    help="Draft of the bundle to load in the cloud and use where that is faster.",
)
@threads_option("Threads of the target and of the cloud draft.", automatic="tuned, or every core")
@trace_option
@click.option(
    "--idle-timeout",
    type=SECONDS,
    default=DEFAULT.idle_timeout,
    show_default=True,
    help="Close a session after this many seconds without a message from its device about it.",
)
@click.option(
    "--drain-timeout",
    type=SECONDS,
    default=DEFAULT.drain_timeout,
    show_default=True,
    help="Seconds to finish answers after SIGTERM or Ctrl-C; devices resume the rest elsewhere.",
)
@click.option(
    "--status",
    default=DEFAULT.status,
    metavar="HOST:PORT",
    help="Serve health, metrics and the data of 'edgespec top' here, unencrypted.",
)
@click.option(
    "--status-host",
    multiple=True,
    metavar="NAME",
    help="Another host name by which the status port may be addressed; may be repeated.",
)
@energy_options
@click.option(
    "--log-format",
    type=click.Choice(get_args(Format)),
    default="text",
    show_default=True,
    help="Write log lines as text or as JSON.",
)
@click.option(
    "--log-level",
    type=click.Choice(get_args(Level)),
    default="info",
    show_default=True,
    help="Least important level of log lines that are written.",
)
def cloud_run(
    bundle: Path, bundle_key: Path | None, log_format: Format, log_level: Level, **options: Any
) -> None:
    """Serve the target of BUNDLE to devices."""
    from cloud_runtime.command import cloud_run
    from edgespec.manifest import Bundle

    configure(log_format, log_level)
    settings = CloudSettings(energy=energy_root(options), **options)
    cloud_run(Bundle.open(bundle, bundle_key), settings)


@click.command()
@connect_option(
    STATUS_URL, metavar="URL", help="Status address of the cloud, given to 'cloud-run --status'."
)
@click.option("--once", is_flag=True, help="Print the view once and exit.")
@json_option("Print one JSON line per refresh instead of the view.")
@click.option(
    "--interval",
    type=click.FloatRange(0.1, 3600.0),
    default=1.0,
    show_default=True,
    help="Seconds between two refreshes.",
)
def top(connect: str, once: bool, as_json: bool, interval: float) -> None:
    """Watch a cloud: sessions, batch, acceptance rate, memory and modes.

    The keys q and Ctrl-C end it.
    """
    from cli.watch import watch

    watch(connect, once=once, as_json=as_json, interval_s=interval)


@click.command()
@click.argument("folder", type=PATH)
@click.option("--device", metavar="NAME", help="Make a device's pair instead of the cloud's.")
@click.option("--signing", is_flag=True, help="Make a pair for signing bundles instead.")
def keygen(folder: Path, device: str | None, signing: bool) -> None:
    """Make a key pair in FOLDER for links between machines.

    Without --device it is the cloud's: cloud.key_secret stays there, and cloud.key is copied to the
    devices. With --device NAME it is a device's: NAME.key_secret stays on the device, and NAME.key
    is copied into the folder that the cloud is given with --clients. With --signing it is for
    bundles: bundle.signing_secret is for 'edgespec export --sign', and bundle.signing_key is copied
    to all who check bundles.
    """
    from edgespec.keys import make_keys
    from edgespec.signing import make_signing_keys

    if signing and device:
        raise UsageError("--signing and --device make different pairs; pass one of them")
    make = make_signing_keys if signing else make_keys
    public, secret = make(folder, device or ("bundle" if signing else "cloud"))
    click.echo(f"secret: {secret}\npublic: {public}")
