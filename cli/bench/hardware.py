"""`bench gpu` and `bench arm`: other processors."""

from __future__ import annotations

from typing import Any

import click

from cli.options import DEVICES_COUNT, json_option, max_tokens_option, plot_option

BOARDS = ("rpi4", "rpi5")


@click.command()
@click.option(
    "--shapes",
    type=click.Choice(["llama-2-7b", "tiny"]),
    default="llama-2-7b",
    show_default=True,
    help="Shapes of the target.",
)
@click.option(
    "--backend",
    "backends",
    type=click.Choice(["torch", "torch-fast"]),
    multiple=True,
    show_default="both",
    help="Back end to measure; may be repeated.",
)
@click.option(
    "--device",
    type=click.Choice(["cuda", "cpu"]),
    default="cuda",
    show_default=True,
    help="Processor to measure.",
)
@click.option(
    "--precision",
    type=click.Choice(["fp16", "bf16", "int8", "int4"]),
    default="fp16",
    show_default=True,
    help="Precision of the weights.",
)
@click.option(
    "--rows",
    "max_rows",
    type=DEVICES_COUNT,
    default=64,
    show_default=True,
    help="Largest number of rows in a step.",
)
@plot_option()
@json_option()
def gpu(as_json: bool, **options: Any) -> None:
    """Steps of a target with random weights, compared with the limits of the GPU."""
    from bench.gpu.run import BACKENDS, GpuSettings, run

    options["backends"] = tuple(dict.fromkeys(options["backends"])) or BACKENDS
    run(GpuSettings(**options), as_json=as_json)


@click.command()
@click.option(
    "--board",
    "boards",
    type=click.Choice(BOARDS),
    multiple=True,
    show_default="both",
    help="Board to emulate; may be repeated.",
)
@max_tokens_option(12)
@click.option(
    "--wheels", is_flag=True, help="Instead count the packages that a device installs, by Python."
)
@json_option()
def arm(boards: tuple[str, ...], max_tokens: int, wheels: bool, as_json: bool) -> None:
    """Run an emulated aarch64 device against a cloud here, and compare the tokens.

    Needs x86-64, Debian 12 and, the first time, the network; no privileges. Installs nothing. The
    exit code is 1 if an answer differs from the target's own or the device drafted none of it.
    """
    from bench.arm.check import check
    from bench.arm.wheels import count

    if wheels:
        count(as_json=as_json)
    else:
        check(boards or BOARDS, max_tokens, as_json=as_json)
